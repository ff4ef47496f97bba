//! What an expression is made of: operators on floats, and those that the CPU provider computes on codes.

use super::codes::Codes;
use super::form::{clip_range, is_taken_away};
use super::functions;
use super::pairwise::{Operator, Pairwise};
use super::signed::Edges;
use super::vectors::Number;
use crate::graph::{Graph, Node, ValueId};
use crate::refusal::{Refusal, refuse};
use npu_uapi::requantise::dequantise;

/// Where an operand comes from.
pub(super) enum Term {
    /// An 8-bit tensor, dequantised.
    Leaf {
        /// The tensor.
        value: ValueId,
        /// Its codes.
        codes: Codes,
    },
    /// A constant.
    Constant {
        /// As a float.
        value: f32,
        /// As the model has it, when it is quantised.
        quantised: Option<(Codes, u8)>,
    },
    /// The constant of several elements of this index.
    Vector(usize),
    /// The float result of an operator.
    Nested(Box<(Operation, Vec<Term>)>),
}

impl Term {
    /// The float, with the codes of tensors as `leaf` gives them, and `tie` as of [`Operation::apply`].
    pub(super) fn value(&self, leaf: &dyn Fn(ValueId) -> u8, tie: f32) -> f32 {
        match self {
            Self::Leaf { value, codes } => dequantise(leaf(*value), codes.scale, codes.zero_point),
            Self::Constant { value, .. } => *value,
            // Numbers take its place before anything is computed.
            Self::Vector(_) => f32::NAN,
            Self::Nested(nested) => {
                let (operation, terms) = nested.as_ref();
                let operands: Vec<f32> = terms.iter().map(|term| term.value(leaf, tie)).collect();
                // What the CPU's kernels make of NaN differs from one to the next.
                let is_nan = operands.iter().any(|operand| operand.is_nan());
                if is_nan { f32::NAN } else { operation.apply(&operands, tie).0 }
            }
        }
    }

    /// Whether its sign may be that of a tie.
    pub(super) fn may_tie(&self) -> bool {
        match self {
            Self::Nested(nested) => {
                matches!(nested.0, Operation::Max | Operation::Min)
                    || nested.1.iter().any(Self::may_tie)
            }
            _ => false,
        }
    }

    /// The same with these numbers for the constants of several elements.
    pub(super) fn with(&self, numbers: &[Number]) -> Self {
        match self {
            Self::Leaf { value, codes } => Self::Leaf { value: *value, codes: *codes },
            Self::Constant { value, quantised } => {
                Self::Constant { value: *value, quantised: *quantised }
            }
            Self::Vector(index) => {
                let (value, quantised) = numbers[*index];
                Self::Constant { value, quantised }
            }
            Self::Nested(nested) => {
                let terms = nested.1.iter().map(|term| term.with(numbers)).collect();
                Self::Nested(Box::new((nested.0, terms)))
            }
        }
    }

    fn is_quantised(&self) -> bool {
        matches!(self, Self::Leaf { .. } | Self::Constant { quantised: Some(_), .. })
    }

    /// Codes and code, when it is quantised.
    fn code(&self, leaf: &dyn Fn(ValueId) -> u8) -> Option<(Codes, u8)> {
        let (codes, code) = match self {
            Self::Leaf { value, codes } => (*codes, leaf(*value)),
            Self::Constant { quantised, .. } => (*quantised)?,
            Self::Vector(_) | Self::Nested(_) => return None,
        };
        Some((codes, code))
    }
}

/// An element-wise operator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Operation {
    Relu,
    LeakyRelu(f32),
    Clip(f32, f32),
    Sigmoid,
    HardSigmoid {
        alpha: f32,
        beta: f32,
    },
    HardSwish,
    Tanh,
    Elu(f32),
    Erf,
    Exp,
    Sqrt,
    Abs,
    Neg,
    PRelu,
    Add,
    Sub,
    Mul,
    Div,
    Max,
    Min,
    Square,
    Cube,
    /// By this exponent.
    Power(f32),
    /// With its epsilon.
    BatchNorm(f32),
}

/// The `extreme` of `operands`; where it is a zero, the sign of those that are, or `tie`.
fn signed(extreme: f32, operands: &[f32], tie: f32) -> f32 {
    let mut zeros = operands.iter().copied().filter(|&operand| operand == 0.0);
    match zeros.next() {
        Some(first) if extreme == 0.0 => {
            let is_torn = zeros.any(|other| other.is_sign_negative() != first.is_sign_negative());
            if is_torn { tie } else { first }
        }
        _ => extreme,
    }
}

/// Whether `node` is an element-wise operator of this list.
pub(super) fn is_operation(node: &Node) -> bool {
    const NAMES: [&str; 22] = [
        "BatchNormalization",
        "Relu",
        "LeakyRelu",
        "Clip",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Tanh",
        "Elu",
        "Erf",
        "Exp",
        "Sqrt",
        "Abs",
        "Neg",
        "PRelu",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Max",
        "Min",
        "Pow",
    ];
    NAMES.iter().any(|name| node.is(name))
}

/// What `node` does, and which of its inputs are operands.
pub(super) fn operation(graph: &Graph, node: &Node) -> Result<(Vec<usize>, Operation), Refusal> {
    if !is_operation(node) {
        return refuse!(OPERATOR, "{node} is not element-wise, or not known to be");
    }
    let float = |name: &str, otherwise| match node.float(name).unwrap_or(otherwise) {
        found if found.is_finite() => Ok(found),
        found => refuse!(ATTRIBUTE, "{node} has {name} {found}; it must be finite"),
    };
    let one = |operation| Ok((vec![0], operation));
    let two = |operation| match node.inputs.len() {
        2 => Ok((vec![0, 1], operation)),
        inputs => refuse!(ATTRIBUTE, "{node} has {inputs} inputs; two are taken"),
    };
    match node.op.as_str() {
        "Relu" => one(Operation::Relu),
        "LeakyRelu" => one(Operation::LeakyRelu(float("alpha", 0.01)?)),
        "Clip" => match clip_range(graph, node) {
            Some(_) if is_taken_away(graph, node) => one(Operation::Clip(f32::MIN, f32::MAX)),
            Some((low, high)) if low <= high => one(Operation::Clip(low, high)),
            Some((low, high)) => refuse!(ATTRIBUTE, "{node} has bounds {low} and {high}"),
            None => refuse!(ATTRIBUTE, "{node} has bounds that are not constant float32"),
        },
        "Sigmoid" => one(Operation::Sigmoid),
        "HardSigmoid" => {
            let (alpha, beta) = (float("alpha", 0.2)?, float("beta", 0.5)?);
            one(Operation::HardSigmoid { alpha, beta })
        }
        "HardSwish" => one(Operation::HardSwish),
        "Tanh" => one(Operation::Tanh),
        "Elu" => one(Operation::Elu(float("alpha", 1.0)?)),
        "Erf" => one(Operation::Erf),
        "Exp" => one(Operation::Exp),
        "Sqrt" => one(Operation::Sqrt),
        "Abs" => one(Operation::Abs),
        "Neg" => one(Operation::Neg),
        "BatchNormalization" => {
            for (name, otherwise) in [("training_mode", 0), ("spatial", 1)] {
                let found = node.int(name).unwrap_or(otherwise);
                if found != otherwise {
                    return refuse!(ATTRIBUTE, "{node} has {name} {found}; {otherwise} is taken");
                }
            }
            Ok((vec![0, 1, 2, 3, 4], Operation::BatchNorm(float("epsilon", 1e-5)?)))
        }
        "PRelu" => two(Operation::PRelu),
        "Add" => two(Operation::Add),
        "Sub" => two(Operation::Sub),
        "Mul" => two(Operation::Mul),
        "Div" => two(Operation::Div),
        "Max" => Ok(((0..node.inputs.len()).collect(), Operation::Max)),
        "Min" => Ok(((0..node.inputs.len()).collect(), Operation::Min)),
        _ => power(graph, node),
    }
}

/// Pow by a number. The CPU provider multiplies out 2 and 3.
fn power(graph: &Graph, node: &Node) -> Result<(Vec<usize>, Operation), Refusal> {
    let exponent = graph.constant(node, 1).and_then(|tensor| tensor.as_f32());
    match exponent.as_deref() {
        Some(&[2.0]) => Ok((vec![0], Operation::Square)),
        Some(&[3.0]) => Ok((vec![0], Operation::Cube)),
        Some(&[exponent]) if exponent.is_finite() => Ok((vec![0], Operation::Power(exponent))),
        found => {
            refuse!(
                ATTRIBUTE,
                "{node} has exponent {found:?}; one finite float32 constant is taken"
            )
        }
    }
}

impl Operation {
    /// Whether it may feed other float operators: the CPU provider merges some into one function of
    /// its own, `x * Sigmoid(x)` for one, whose roundings are others.
    pub(super) fn may_nest(self) -> bool {
        !matches!(
            self,
            Self::Sigmoid
                | Self::Tanh
                | Self::Erf
                | Self::Elu(_)
                | Self::BatchNorm(_)
                | Self::Power(_)
        )
    }

    /// Whether its constants have a number for each channel.
    pub(super) fn is_by_channel(self) -> bool {
        matches!(self, Self::BatchNorm(_))
    }

    /// The float result, and how far from it the CPU provider's may be. A zero keeps the sign that it has on
    /// the CPU, since a division may show it; of a positive and a negative one Max and Min take now this one,
    /// now that, here `tie`.
    pub(super) fn apply(self, operands: &[f32], tie: f32) -> (f32, f32) {
        let x = operands[0];
        let second = || operands[1];
        let value = match self {
            Self::Relu => {
                if x >= 0.0 {
                    x
                } else {
                    0.0
                }
            }
            Self::LeakyRelu(alpha) => {
                if x >= 0.0 {
                    x
                } else {
                    alpha * x
                }
            }
            Self::Clip(low, high) => {
                if x < low {
                    low
                } else if x <= high {
                    x
                } else {
                    high
                }
            }
            Self::Sigmoid => functions::logistic(x),
            Self::HardSigmoid { alpha, beta } => functions::hard_sigmoid(x, alpha, beta),
            Self::HardSwish => x * functions::hard_sigmoid(x, 1.0 / 6.0, 0.5),
            Self::Tanh => functions::tanh(x),
            Self::Elu(alpha) if x < 0.0 => {
                let value = alpha * (functions::exp(x) - 1.0);
                // The exponential is good to 2 steps of 2^-24, the difference cancels no more than that.
                return (value, alpha.abs() * 2_f32.powi(-21));
            }
            Self::Elu(_) => x,
            Self::Erf => functions::erf(x),
            Self::Exp => functions::exp(x),
            Self::Sqrt => x.sqrt(),
            Self::Abs => x.abs(),
            Self::Neg => -x,
            Self::PRelu => {
                if x < 0.0 {
                    x * second()
                } else {
                    x
                }
            }
            Self::Add => x + second(),
            Self::Sub => x - second(),
            Self::Mul => x * second(),
            Self::Div => x / second(),
            Self::Max => signed(operands.iter().copied().fold(x, f32::max), operands, tie),
            Self::Min => signed(operands.iter().copied().fold(x, f32::min), operands, tie),
            Self::Square => x * x,
            Self::Cube => x * x * x,
            Self::Power(exponent) => {
                #[expect(clippy::cast_possible_truncation, reason = "rounded as float32 is")]
                let value = f64::from(x).powf(f64::from(exponent)) as f32;
                // The CPU provider's is that of a C library, good to two steps of 2^-23.
                let error = if value.is_infinite() { 0.0 } else { value.abs() * 2_f32.powi(-22) };
                return (value, error);
            }
            Self::BatchNorm(epsilon) => {
                let &[_, scale, bias, mean, variance] = operands else { return (f32::NAN, 0.0) };
                let scale = scale * (1.0 / (variance + epsilon).sqrt());
                x * scale + (bias - mean * scale)
            }
        };
        (value, 0.0)
    }

    /// Whether the CPU provider computes the operator on codes.
    pub(super) fn is_fused(self, terms: &[Term], edges: Edges) -> bool {
        matches!(self, Self::Add | Self::Mul)
            && edges != Edges::Mixed
            && terms.iter().all(Term::is_quantised)
    }

    /// The code, where the CPU provider computes the operator on codes: Add and Mul whose operands
    /// are all quantised, and of one type with the result. As an error, what their scales come to when that is no number.
    pub(super) fn fused(
        self,
        terms: &[Term],
        leaf: &dyn Fn(ValueId) -> u8,
        edges: Edges,
        output: Codes,
    ) -> Option<Result<u8, f32>> {
        let operator = match self {
            Self::Add => Operator::Add,
            Self::Mul => Operator::Mul,
            _ => return None,
        };
        if edges == Edges::Mixed {
            return None;
        }
        let (first, a) = terms[0].code(leaf)?;
        let (second, b) = terms[1].code(leaf)?;
        // A constant is the second operand of the CPU's addition, wherever the model has it.
        let is_swapped = operator == Operator::Add && matches!(terms[0], Term::Constant { .. });
        let [(first, a), (second, b)] =
            if is_swapped { [(second, b), (first, a)] } else { [(first, a), (second, b)] };
        let pairwise = Pairwise::new(operator, edges, [first, second, output]);
        Some(pairwise.map(|pairwise| pairwise.code(a, b)))
    }
}
