//! Commands to bytes: each struct is its own wire form.

use crate::command::Command;
use alloc::vec::Vec;
use zerocopy::IntoBytes;

/// The wire form of `command`, a multiple of 64 bytes.
pub fn command(command: &Command) -> &[u8] {
    match command {
        Command::Conv(command) => command.as_bytes(),
        Command::MatMul(command) => command.as_bytes(),
        Command::Product(command) => command.as_bytes(),
        Command::Softmax(command) => command.as_bytes(),
        Command::Reduce(command) => command.as_bytes(),
        Command::Norm(command) => command.as_bytes(),
        Command::Resize(command) => command.as_bytes(),
        Command::Add(command) => command.as_bytes(),
        Command::Mul(command) => command.as_bytes(),
        Command::Pool(command) => command.as_bytes(),
        Command::Table(command) => command.as_bytes(),
        Command::PairTable(command) => command.as_bytes(),
        Command::ChannelTable(command) => command.as_bytes(),
        Command::Layout(command) => command.as_bytes(),
        Command::Copy(command) => command.as_bytes(),
        Command::Fill(command) => command.as_bytes(),
        Command::End(command) => command.as_bytes(),
    }
}

/// The wire form of a sequence of commands.
pub fn commands(commands: &[Command]) -> Vec<u8> {
    commands.iter().flat_map(|c| command(c).iter().copied()).collect()
}
