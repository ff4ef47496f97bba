//! The same inputs on ONNX Runtime's CPU provider, and how the results differ.

use super::host::HostError;
use super::{Outcome, Session, SessionError, Source};
use crate::graph::ElementType;
use crate::ort::host::{HostSession, Level, Model, Options, Ran};
use crate::run::{OwnedTensor, TensorRef};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// What was compared with.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Reference {
    /// Version of ONNX Runtime.
    pub version: String,
    /// Its library.
    pub library: PathBuf,
    /// The instructions of this machine on which its quantised kernels depend.
    pub isa: &'static str,
    /// Its optimisation level.
    pub level: &'static str,
    /// Its threads, where they were set.
    pub threads: Option<NonZeroUsize>,
}

/// How one output differs.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Difference {
    /// The output.
    pub output: String,
    /// Values that it has.
    pub values: usize,
    /// Values whose bits differ; one NaN is as good as another. All of them where shape or type differ.
    pub differing: usize,
    /// The largest distance of two values.
    pub most: f64,
    /// The first place that differs: its index, the value here, and that of the CPU.
    pub first: Option<(usize, f64, f64)>,
}

/// A run, and how it compares.
#[derive(Debug)]
#[non_exhaustive]
pub struct Comparison {
    /// The run of this session.
    pub outcome: Outcome,
    /// What it is compared with.
    pub reference: Reference,
    /// One for each output.
    pub outputs: Vec<Difference>,
}

impl Comparison {
    /// Whether every bit is the same.
    pub fn is_equal(&self) -> bool {
        self.outputs.iter().all(|output| output.differing == 0)
    }
}

impl Session {
    /// Runs the model here and, as it is in its file, on ONNX Runtime's CPU provider at its default
    /// optimisation level. ONNX Runtime is the host engine's, or found as [`super::OrtOptions`] says.
    ///
    /// # Errors
    /// As for [`Session::run`]; or ONNX Runtime is not there, or does not load the model.
    pub fn compare_cpu(&self, inputs: &[TensorRef<'_>]) -> Result<Comparison, SessionError> {
        let outcome = self.run(inputs)?;
        let cpu = self.reference()?;
        let library = cpu.library();
        let fails = |failure| HostError::new(library, failure);
        let timeout = self.timeout;
        let wanted = match cpu.run(inputs, timeout).map_err(fails)? {
            Ran::Outputs(wanted) => wanted,
            Ran::Late => return Err(SessionError::Late { timeout }),
        };
        let pairs = outcome.outputs.iter().zip(&wanted).zip(&self.outputs);
        let outputs = pairs.map(|((found, wanted), info)| difference(&info.name, found, wanted));
        let outputs = outputs.collect();
        let reference = Reference {
            version: library.version().to_owned(),
            library: library.path().to_owned(),
            isa: isa(),
            level: "default (all)",
            threads: self.host.threads,
        };
        Ok(Comparison { outcome, reference, outputs })
    }

    fn reference(&self) -> Result<&HostSession, SessionError> {
        if let Some(cpu) = self.reference.get() {
            return Ok(cpu);
        }
        let library = self.host.open()?;
        let model = match &self.source {
            Source::File(path) => Model::File(path),
            Source::Bytes(bytes) => Model::Bytes(bytes),
        };
        let threads = self.host.threads;
        let options =
            Options { level: Level::Default, threads, write: None, folder: None, parts: None };
        let cpu = HostSession::new(library, model, options)
            .map_err(|failure| HostError::new(library, failure))?;
        Ok(self.reference.get_or_init(|| cpu))
    }
}

fn difference(output: &str, found: &OwnedTensor, wanted: &OwnedTensor) -> Difference {
    let mut difference =
        Difference { output: output.to_owned(), values: 0, differing: 0, most: 0.0, first: None };
    let size = wanted.element().bytes().unwrap_or(1).max(1);
    difference.values = wanted.bytes().len() / size;
    if (found.element(), found.shape()) != (wanted.element(), wanted.shape()) {
        difference.differing = difference.values.max(1);
        difference.most = f64::INFINITY;
        return difference;
    }
    let pairs = found.bytes().chunks_exact(size).zip(wanted.bytes().chunks_exact(size));
    for (index, (a, b)) in pairs.enumerate().filter(|(_, (a, b))| a != b) {
        let (a, b) = (number(found.element(), a), number(wanted.element(), b));
        if a.is_nan() && b.is_nan() {
            continue;
        }
        difference.differing += 1;
        let distance = (a - b).abs();
        // A NaN against a number is as far as can be.
        let distance = if distance.is_nan() { f64::INFINITY } else { distance };
        difference.most = difference.most.max(distance);
        difference.first.get_or_insert((index, a, b));
    }
    difference
}

fn number(element: ElementType, bytes: &[u8]) -> f64 {
    match (element, bytes) {
        (ElementType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]).into(),
        (ElementType::I32, &[a, b, c, d]) => i32::from_le_bytes([a, b, c, d]).into(),
        (ElementType::I8, &[a]) => i8::from_le_bytes([a]).into(),
        (ElementType::U8, &[a]) => a.into(),
        (ElementType::I64, &[a, b, c, d, e, f, g, h]) => {
            let whole = i64::from_le_bytes([a, b, c, d, e, f, g, h]);
            #[expect(clippy::cast_precision_loss, reason = "a number for people to read")]
            let near = whole as f64;
            near
        }
        _ => f64::NAN,
    }
}

/// What decides how the CPU provider multiplies 8-bit numbers.
fn isa() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512vnni") {
            return "x86-64 AVX-512 VNNI";
        }
        if std::arch::is_x86_feature_detected!("avxvnni") {
            return "x86-64 AVX-VNNI";
        }
        if std::arch::is_x86_feature_detected!("avx512bw") {
            return "x86-64 AVX-512, no VNNI: products of u8 and s8 may saturate";
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            return "x86-64 AVX2, no VNNI: products of u8 and s8 may saturate";
        }
        "x86-64"
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::env::consts::ARCH
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], values: &[f32]) -> OwnedTensor {
        OwnedTensor::copy_of(&TensorRef::from_f32(shape, values))
    }

    #[test]
    fn differences_are_counted_by_bits_and_measured_by_value() {
        let nan = f32::from_bits(f32::NAN.to_bits() | 1);
        let found = tensor(&[5], &[1.0, 2.0, -0.0, f32::NAN, 7.0]);
        let wanted = tensor(&[5], &[1.0, 2.5, 0.0, nan, 4.0]);
        let told = difference("y", &found, &wanted);
        assert_eq!((told.values, told.differing, told.most), (5, 3, 3.0));
        assert_eq!(told.first, Some((1, 2.0, 2.5)));
        assert_eq!(difference("y", &wanted, &wanted).differing, 0);
    }

    #[test]
    fn another_shape_differs_everywhere() {
        let told = difference("y", &tensor(&[1, 2], &[1.0, 2.0]), &tensor(&[2], &[1.0, 2.0]));
        assert_eq!((told.differing, told.most), (2, f64::INFINITY));
    }
}
