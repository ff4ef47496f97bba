//! Who runs what the NPU does not take.

/// What becomes of nodes that the NPU does not take.
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum Fallback {
    /// Loading such a model is an error that names each node and its reason.
    #[default]
    Deny,
}
