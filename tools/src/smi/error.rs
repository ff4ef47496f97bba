//! What can go wrong between this program and a server, and the exit code that says so to a script.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SmiError {
    #[error(
        "no server is named, and there is no management socket at {}; start one with `npu-sim \
         --socket PATH --manage PATH`, and name that path with --socket or in NPU_MANAGE",
        list(.looked)
    )]
    Nowhere { looked: Vec<PathBuf> },

    #[error(
        "there is no management socket at {}; start a server with `npu-sim --socket PATH --manage {0}`, \
         or name another with --socket or in NPU_MANAGE", .path.display()
    )]
    Missing { path: PathBuf },

    #[error("{} is {found}, not a management socket; name what was behind `npu-sim --manage`", .path.display())]
    NoSocket { path: PathBuf, found: &'static str },

    #[error(
        "nobody listens at {}: the server that made this socket is gone; start `npu-sim` again",
        .path.display()
    )]
    Abandoned { path: PathBuf },

    #[error(
        "user {user} may not open {}, which belongs to user {owner}; run npu-smi as that user",
        .path.display()
    )]
    Forbidden { path: PathBuf, user: u32, owner: u32 },

    #[error(
        "{} belongs to user {owner}, neither to you nor to root; if you trust that user, name it with --socket",
        .path.display()
    )]
    Stranger { path: PathBuf, owner: u32 },

    #[error("the device `{device}` has no management socket: {why}")]
    Unmanaged { device: String, why: String },

    #[error("cannot open device `{device}`: {why}")]
    Unopened { device: String, why: String },

    #[error("cannot talk to {place}: {source}")]
    Broken { place: String, source: std::io::Error },

    #[error(
        "{place} did not answer `{command}` within {:.1} s; is its process stopped? --timeout SECONDS waits longer",
        .waited.as_secs_f64()
    )]
    Stalled { place: String, command: String, waited: Duration },

    #[error("{place} closed the connection before it answered `{command}`; has the server ended?")]
    Gone { place: String, command: String },

    #[error(
        "{place} answered `{command}` with what is no reply: {found}; does this socket belong to npu-sim?"
    )]
    Garbage { place: String, command: String, found: String },

    #[error(
        "{place} answers with schema {found}, this npu-smi reads schema {known}; update npu-smi"
    )]
    Newer { place: String, found: u64, known: u64 },

    #[error("{place} refuses `{command}`: {why}")]
    Refused { place: String, command: String, why: String },

    #[error("{place} does not know `{command}`: it is older than this npu-smi; update npu-sim")]
    Older { place: String, command: String },

    #[error("{what}; {remedy}")]
    Usage { what: String, remedy: String },

    #[error("cannot {what} {}: {source}", .path.display())]
    File { what: &'static str, path: PathBuf, source: std::io::Error },

    #[error("what {what} holds is no core dump: {why}")]
    NoDump { what: String, why: String },

    #[error("cannot use the terminal: {source}")]
    Terminal { source: std::io::Error },

    #[error("cannot write the report: {source}")]
    Output { source: std::io::Error },
}

/// What the exit codes mean, for `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done, and all is well
  1  done, and what was looked for is not well: a self-test failed, or a reset found no client
  2  the command line makes no sense
  3  there is no server to talk to, or it may not be talked to
  4  the server refuses the command, or does not know it
  5  the server went away or did not answer in time
  6  what was answered, or what a file holds, cannot be understood
  7  a file or the terminal cannot be read or written";

impl SmiError {
    /// See [`EXIT_CODES`].
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage { .. } => 2,
            Self::Nowhere { .. }
            | Self::Missing { .. }
            | Self::NoSocket { .. }
            | Self::Abandoned { .. }
            | Self::Forbidden { .. }
            | Self::Stranger { .. }
            | Self::Unmanaged { .. }
            | Self::Unopened { .. } => 3,
            Self::Refused { .. } | Self::Older { .. } => 4,
            Self::Broken { .. } | Self::Stalled { .. } | Self::Gone { .. } => 5,
            Self::Garbage { .. } | Self::Newer { .. } | Self::NoDump { .. } => 6,
            Self::File { .. } | Self::Terminal { .. } | Self::Output { .. } => 7,
        })
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
