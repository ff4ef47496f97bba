//! The verifier's rules, numbered, and the refusal that names the one a program broke.

use crate::addr::SlotId;
use crate::command::Command;
use crate::extent::Access;
use crate::status::{FaultRecord, NOT_APPLICABLE, Status};
use alloc::string::String;
use core::fmt;

macro_rules! rules {
    ($( $name:ident = $number:literal, $text:literal; )*) => {
        /// What a program must keep to run. The number is the `cause` of the fault record.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[non_exhaustive]
        #[repr(u16)]
        pub enum Rule {
            $( #[doc = $text] $name = $number, )*
        }

        impl Rule {
            /// Every rule of this version.
            pub const ALL: &'static [Self] = &[$( Self::$name, )*];

            /// The number that fault records carry.
            pub fn number(self) -> u16 {
                match self { $( Self::$name => $number, )* }
            }

            /// What must hold.
            pub fn text(self) -> &'static str {
                match self { $( Self::$name => $text, )* }
            }
        }
    };
}

rules! {
    IsaVersion = 1, "the device must know the command set that the program is written in";
    Features = 2, "the program may need no feature that the device lacks, and must declare what it uses";
    ImageSize = 3, "the image must fit the device's bound on program bytes";
    CommandCount = 4, "the program must have at most as many commands as the device takes";
    SlotCount = 5, "the program must declare at most as many slots as the device has";
    SlotDeclaration = 6, "a slot declaration must have a known kind and zero reserved bytes, and an unused slot no length";
    SramSize = 7, "the SRAM slots together must fit the device's SRAM";
    End = 8, "END must be the last command, and only the last";
    Malformed = 9, "the command must be one that decoding its bytes gives back";
    Dimension = 10, "every dimension, length and kernel size must be at least 1";
    OperandRange = 11, "an operand must lie at non-negative 64-bit offsets of its slot";
    OperandSize = 12, "the size of an operand must fit 64 bits";
    UnknownSlot = 13, "an operand must name a declared slot that is in use";
    SlotLength = 14, "an operand must lie within the length its slot declares";
    SlotAccess = 15, "the kind of the slot must allow the access (constants and inputs are read only)";
    PixelStride = 16, "a pixel stride must be at least the channel count in magnitude (inputs of ADD and MUL may have zero)";
    InputStride = 17, "the pixel stride of a convolution's input and the row stride of a product's left matrix must be multiples of 4";
    Groups = 18, "the groups must divide the input and output channels";
    WindowStep = 19, "kernel sizes, strides and dilations of a window must be at least 1";
    WindowPad = 20, "padding on any side must be less than the dilated kernel";
    WindowOutput = 21, "the last window must begin within the input";
    GlobalOutput = 22, "a global average must have an output of 1 by 1";
    GlobalSum = 23, "the sum of a global average must fit 31 bits: at most 8,421,504 pixels an image";
    SelfOverlap = 24, "the elements of a written tensor, with their pad lanes, must not overlap one another";
    InputOverlap = 25, "a result must not overlap an input (ADD, MUL and the commands of tables may write exactly over an operand)";
    CommandWork = 26, "a command must keep the device's bound on multiply-accumulates (taps, for POOL)";
    ProgramWork = 27, "the program must keep the device's bound on multiply-accumulates (taps, for POOL)";
    ProgramTraffic = 28, "the program must keep the device's bound on bytes moved";
}

/// Why a program may not run: the rule it breaks, and where.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The rule.
    pub rule: Rule,
    /// Index of the command, `None` when the program as a whole is refused.
    pub command: Option<usize>,
    /// The command's `op_id`, zero without a command.
    pub op_id: u32,
    /// The command's opcode, zero without a command.
    pub opcode: u8,
    /// The command's name, empty without a command.
    pub name: &'static str,
    /// The field that is wrong.
    pub field: &'static str,
    /// The bytes that the operand covers, where an operand is wrong.
    pub access: Option<Access>,
    /// What was found there.
    pub found: String,
}

impl Refusal {
    pub(super) fn new(rule: Rule, field: &'static str, found: String) -> Self {
        Self { rule, command: None, op_id: 0, opcode: 0, name: "", field, access: None, found }
    }

    pub(super) fn of(mut self, access: Access) -> Self {
        self.access = Some(access);
        self
    }

    pub(super) fn at(mut self, index: usize, command: &Command) -> Self {
        self.command = Some(index);
        self.op_id = command.header().op_id;
        self.opcode = command.header().opcode;
        self.name = command.name();
        self
    }

    /// The refusal as the device records it; the reporter fills in sequence, queue and job.
    pub fn fault(&self) -> FaultRecord {
        let access = self.access.unwrap_or_default();
        let index = self.command.and_then(|index| u32::try_from(index).ok());
        FaultRecord {
            status: Status::PROGRAM_REFUSED,
            cause: self.rule.number(),
            slot: self.access.map_or(SlotId(u16::MAX), |access| access.slot),
            command: index.unwrap_or(NOT_APPLICABLE),
            op_id: if self.command.is_some() { self.op_id } else { NOT_APPLICABLE },
            opcode: self.opcode,
            access: self.access.map_or(0, |access| if access.write { 2 } else { 1 }),
            offset: access.start,
            len: access.len,
            ..FaultRecord::default()
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("program refused: ")?;
        if let Some(index) = self.command {
            write!(f, "command {index} ({}, op {}), ", self.name, self.op_id)?;
        }
        write!(f, "`{}`", self.field)?;
        if let Some(access) = self.access {
            write!(f, " at {:?}+{:#x}, {} bytes", access.slot, access.start, access.len)?;
        }
        write!(f, ": {}; {} (rule {})", self.found, self.rule.text(), self.rule.number())
    }
}

impl core::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_numbered_without_gaps_from_one() {
        for (index, rule) in Rule::ALL.iter().enumerate() {
            assert_eq!(usize::from(rule.number()), index + 1);
        }
    }
}
