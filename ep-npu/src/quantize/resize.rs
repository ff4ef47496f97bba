//! Resize to the nearest: which element each element of the result is.
//!
//! The CPU provider finds the element in float32, dimension by dimension. Whatever a model's coordinates
//! and roundings are, what comes out is taken where it is a pattern of few runs: `0 0 1 1 2 2`, `1 3 5`
//! and `0 0 1 2 2 3` are.

use super::pick;
use super::rearrange::Step;
use crate::graph::{Node, Tensor};
use crate::refusal::{Refusal, refuse};

use super::form::Former;

/// Longest dimension of a result whose elements are looked through.
const LONGEST: usize = 1 << 20;
/// How near a coordinate may come to where the element changes, in parts of itself, without being there.
const NEAR: f32 = 1e-5;

/// How a Resize says its factors.
#[derive(Clone, Debug, PartialEq)]
pub enum Factors {
    /// As floats.
    Scales(Vec<f32>),
    /// By the lengths of the result.
    Sizes(Vec<i64>),
}

/// Where an element of the result lies in the input.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Coordinates {
    /// `x / scale`.
    Asymmetric,
    /// `(x + 0.5) / scale - 0.5`.
    HalfPixel,
    /// The same, but 0 where the result has one element.
    PytorchHalfPixel,
    /// `(x + 0.5) / scale`.
    TfHalfPixel,
    /// First on first, last on last.
    AlignCorners,
}

/// Which element a coordinate is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rounding {
    /// The one below.
    Floor,
    /// The one above.
    Ceil,
    /// The nearest; the one below of two.
    PreferFloor,
    /// The nearest; the one above of two.
    PreferCeil,
}

/// How large a result is, and where its elements lie.
#[derive(Clone, Debug, PartialEq)]
pub struct Scaling {
    /// How large the result is.
    pub factors: Factors,
    /// Where its elements lie.
    pub coordinates: Coordinates,
}

/// A Resize to the nearest.
#[derive(Clone, Debug, PartialEq)]
pub struct Nearest {
    /// How large the result is, and where its elements lie.
    pub scaling: Scaling,
    /// Which they are.
    pub rounding: Rounding,
}

impl Coordinates {
    /// Where element `x` of `result` lies in `len`.
    #[expect(clippy::cast_precision_loss, reason = "lengths below 2^24")]
    pub(super) fn position(self, x: f32, scale: f32, len: usize, result: usize) -> f32 {
        match self {
            Self::PytorchHalfPixel | Self::AlignCorners if result == 1 => 0.0,
            Self::Asymmetric => x / scale,
            Self::HalfPixel | Self::PytorchHalfPixel => (x + 0.5) / scale - 0.5,
            Self::TfHalfPixel => (x + 0.5) / scale,
            Self::AlignCorners => x * (len as f32 - 1.0) / (result as f32 - 1.0),
        }
    }
}

impl Scaling {
    /// As the attributes and constants of a Resize say.
    pub(super) fn read(unit: &Former<'_>) -> Result<Self, Refusal> {
        let node = unit.node();
        let coordinates = match node
            .string("coordinate_transformation_mode")
            .unwrap_or("half_pixel")
        {
            "asymmetric" => Coordinates::Asymmetric,
            "half_pixel" => Coordinates::HalfPixel,
            "pytorch_half_pixel" => Coordinates::PytorchHalfPixel,
            "tf_half_pixel_for_nn" => Coordinates::TfHalfPixel,
            "align_corners" => Coordinates::AlignCorners,
            found => {
                return refuse!(
                    ATTRIBUTE,
                    "{node} has coordinate_transformation_mode {found:?}; asymmetric, align_corners and the kinds of half_pixel but half_pixel_symmetric are taken"
                );
            }
        };
        let is_set = |name: &str| node.int(name).is_some_and(|found| found != 0);
        if node.ints("axes").is_some() || is_set("antialias") || is_set("exclude_outside") {
            return refuse!(
                ATTRIBUTE,
                "{node} has axes, antialias or exclude_outside; none of them is taken"
            );
        }
        let keeps = node.string("keep_aspect_ratio_policy").unwrap_or("stretch");
        if keeps != "stretch" {
            return refuse!(
                ATTRIBUTE,
                "{node} has keep_aspect_ratio_policy {keeps:?}; stretch is taken"
            );
        }
        let factors = match (node.input(3), node.input(2)) {
            (Some(_), _) => {
                unit.graph.constant(node, 3).and_then(Tensor::as_i64).map(Factors::Sizes)
            }
            (None, Some(_)) => {
                unit.graph.constant(node, 2).and_then(Tensor::as_f32).map(Factors::Scales)
            }
            (None, None) => None,
        };
        match factors {
            Some(factors) => Ok(Self { factors, coordinates }),
            None => refuse!(SHAPE, "{node} has no constant scales or sizes"),
        }
    }

    /// Of how many dimensions there are factors.
    pub(super) fn given(&self) -> usize {
        match &self.factors {
            Factors::Scales(scales) => scales.len(),
            Factors::Sizes(sizes) => sizes.len(),
        }
    }

    /// The scale of dimension `axis` of length `len`, and the result's length.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "the CPU provider's own conversions, of lengths up to 2^24"
    )]
    pub(super) fn scale(&self, axis: usize, len: usize) -> Option<(f32, usize)> {
        const WHOLE: f32 = 16_777_216.0;
        let known = len as f32;
        let (scale, result) = match &self.factors {
            Factors::Scales(scales) => (scales[axis], (known * scales[axis]).floor()),
            Factors::Sizes(sizes) => (sizes[axis] as f32 / known, sizes[axis] as f32),
        };
        let is_taken = len > 0 && known < WHOLE && scale > 0.0 && (1.0..WHOLE).contains(&result);
        is_taken.then_some((scale, result as usize))
    }
}

impl Nearest {
    /// As the attributes and constants of a Resize say.
    pub(super) fn read(unit: &Former<'_>) -> Result<Self, Refusal> {
        let node = unit.node();
        let scaling = Scaling::read(unit)?;
        let rounding = match node.string("nearest_mode").unwrap_or("round_prefer_floor") {
            "floor" => Rounding::Floor,
            "ceil" => Rounding::Ceil,
            "round_prefer_floor" => Rounding::PreferFloor,
            "round_prefer_ceil" => Rounding::PreferCeil,
            found => {
                return refuse!(ATTRIBUTE, "{node} has nearest_mode {found:?}, which is not ONNX");
            }
        };
        Ok(Self { scaling, rounding })
    }

    /// What `node` does to a tensor of shape `input`, step by step.
    pub(super) fn steps(&self, node: &Node, input: &[usize]) -> Result<Vec<Step>, Refusal> {
        let Scaling { factors, coordinates } = &self.scaling;
        if self.scaling.given() != input.len() {
            return refuse!(SHAPE, "{node} resizes {input:?} by {factors:?}");
        }
        let mut steps = Vec::new();
        for (axis, &len) in input.iter().enumerate() {
            let scale = self.scaling.scale(axis, len).filter(|(_, len)| *len <= LONGEST);
            let Some((scale, result)) = scale else {
                return refuse!(SHAPE, "{node} resizes {input:?} by {factors:?}");
            };
            // The CPU provider looks at no coordinates then.
            if scale.to_bits() == 1.0_f32.to_bits() {
                continue;
            }
            let Some(elements) = self.elements(scale, len, result) else {
                return refuse!(
                    ATTRIBUTE,
                    "{node} resizes {input:?} by {factors:?}, where float32 hardly tells which element is the nearest; choose other factors"
                );
            };
            let Some(more) = pick::steps(axis, len, elements) else {
                return refuse!(
                    ATTRIBUTE,
                    "{node} resizes {input:?} by {factors:?}, {coordinates:?} and {:?}, which takes elements without a pattern; whole factors with asymmetric and floor are taken, or with half_pixel and a round_prefer",
                    self.rounding
                );
            };
            steps.extend(more);
        }
        Ok(steps)
    }

    /// For each element of the result, that of the input; `None` where float32 hardly tells.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "positions up to 2^24, floored and at least 0"
    )]
    fn elements(&self, scale: f32, len: usize, result: usize) -> Option<Vec<usize>> {
        let position = |x: f32| self.scaling.coordinates.position(x, scale, len, result);
        let element = |x: f32| match self.rounding {
            Rounding::Floor => x.floor(),
            Rounding::Ceil => x.ceil(),
            Rounding::PreferFloor => (x - 0.5).ceil(),
            Rounding::PreferCeil => (x + 0.5).floor(),
        };
        let last = len as f32 - 1.0;
        let place = |x: usize| {
            let x = position(x as f32);
            let from = match self.rounding {
                Rounding::Floor | Rounding::Ceil => x - x.round(),
                Rounding::PreferFloor | Rounding::PreferCeil => x - x.floor() - 0.5,
            };
            let is_certain = from == 0.0 || from.abs() > NEAR * (1.0 + x.abs());
            let found = element(x).clamp(0.0, last);
            is_certain.then_some(found as usize)
        };
        (0..result).map(place).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(coordinates: Coordinates, rounding: Rounding, len: usize, size: i64) -> Vec<usize> {
        let scaling = Scaling { factors: Factors::Sizes(vec![size]), coordinates };
        let resize = Nearest { scaling, rounding };
        let (scale, result) = resize.scaling.scale(0, len).unwrap();
        resize.elements(scale, len, result).unwrap()
    }

    #[test]
    fn coordinates_and_roundings_choose_as_onnx_says() {
        use Coordinates::{AlignCorners, Asymmetric, HalfPixel, TfHalfPixel};
        use Rounding::{Ceil, Floor, PreferCeil, PreferFloor};
        assert_eq!(elements(Asymmetric, Floor, 3, 6), [0, 0, 1, 1, 2, 2]);
        assert_eq!(elements(Asymmetric, Ceil, 3, 6), [0, 1, 1, 2, 2, 2]);
        assert_eq!(elements(HalfPixel, PreferFloor, 6, 3), [0, 2, 4]);
        assert_eq!(elements(HalfPixel, PreferCeil, 6, 3), [1, 3, 5]);
        assert_eq!(elements(TfHalfPixel, Floor, 6, 3), [1, 3, 5]);
        assert_eq!(elements(AlignCorners, PreferFloor, 5, 3), [0, 2, 4]);
    }
}
