//! The `registers!` macro: a register written once, as the manual prints it.

use core::marker::PhantomData;

/// What the driver may do to a register.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// The device writes, the driver reads.
    ReadOnly,
    /// Both read; the driver writes.
    ReadWrite,
    /// A write acts; reads give zero.
    WriteOnly,
    /// Reads give the pending bits; writing 1 to a bit clears it.
    WriteOneToClear,
}

/// A value that fits in a field.
pub trait FieldValue: Copy {
    /// Decodes the field's bits, already shifted down.
    fn from_bits(bits: u32) -> Self;
    /// Encodes the value.
    fn into_bits(self) -> u32;
}

impl FieldValue for bool {
    fn from_bits(bits: u32) -> Self {
        bits != 0
    }
    fn into_bits(self) -> u32 {
        u32::from(self)
    }
}

impl FieldValue for u32 {
    fn from_bits(bits: u32) -> Self {
        bits
    }
    fn into_bits(self) -> u32 {
        self
    }
}

/// Bits `[high:low]` of register `R`, holding a `T`.
#[derive(Clone, Copy, Debug)]
pub struct Field<R, T> {
    low: u32,
    width: u32,
    of: PhantomData<(R, T)>,
}

impl<R, T> Field<R, T> {
    /// The field at `[high:low]`.
    pub const fn new(high: u32, low: u32) -> Self {
        assert!(high < 32 && low <= high, "a field is written [high:low], within 32 bits");
        Self { low, width: high - low + 1, of: PhantomData }
    }

    /// The field's bits, in place.
    pub const fn mask(&self) -> u32 {
        (u32::MAX >> (32 - self.width)) << self.low
    }
}

/// A 32-bit register at a fixed offset of BAR0.
pub trait Register: Copy {
    /// Byte offset in BAR0.
    const OFFSET: u32;
    /// What the driver may do to it.
    const ACCESS: Access;
    /// The name the manual uses.
    const NAME: &'static str;
    /// Bits that belong to a field; the rest are reserved, read as zero and must be written as zero.
    const DEFINED: u32;

    /// Wraps what was read.
    fn from_raw(raw: u32) -> Self;

    /// What to write.
    fn raw(self) -> u32;

    /// The value of `field`.
    fn get<T: FieldValue>(self, field: Field<Self, T>) -> T {
        T::from_bits((self.raw() & field.mask()) >> field.low)
    }

    /// The same register with `field` set to `value`.
    ///
    /// # Panics
    ///
    /// When `value` does not fit: the caller validates what comes from outside.
    #[must_use]
    fn with<T: FieldValue>(self, field: Field<Self, T>, value: T) -> Self {
        let bits = value.into_bits();
        assert!(bits <= field.mask() >> field.low, "{bits:#x} does not fit {}", Self::NAME);
        Self::from_raw(self.raw() & !field.mask() | bits << field.low)
    }
}

/// A field, as the register table lists it.
#[derive(Clone, Copy, Debug)]
pub struct FieldInfo {
    /// The name the manual uses.
    pub name: &'static str,
    /// Highest bit.
    pub high: u32,
    /// Lowest bit.
    pub low: u32,
    /// Its description.
    pub doc: &'static str,
}

/// A register, as the register table lists it: for dumps, the manual and the device's decoder.
#[derive(Clone, Copy, Debug)]
pub struct RegisterInfo {
    /// The name the manual uses.
    pub name: &'static str,
    /// Byte offset in BAR0.
    pub offset: u32,
    /// What the driver may do to it.
    pub access: Access,
    /// Bits that belong to a field.
    pub defined: u32,
    /// Its description.
    pub doc: &'static str,
    /// Its fields, in the order written.
    pub fields: &'static [FieldInfo],
}

/// Defines registers as the manual prints them: name, access, offset, then `[high:low] FIELD: type`;
/// and `TABLE`, the list of them all.
#[macro_export]
macro_rules! registers {
    ($( $(#[doc = $doc:literal])* $name:ident: $access:ident @ $offset:literal {
        $( $(#[doc = $fdoc:literal])* [$high:literal : $low:literal] $field:ident: $ty:ty; )*
    } )*) => {
        $(
            $(#[doc = $doc])*
            #[derive(Clone, Copy, Default, Eq, PartialEq)]
            pub struct $name(u32);

            impl $name {
                $( $(#[doc = $fdoc])* pub const $field: $crate::reg::Field<Self, $ty> =
                    $crate::reg::Field::new($high, $low); )*
            }

            impl $crate::reg::Register for $name {
                const OFFSET: u32 = $offset;
                const ACCESS: $crate::reg::Access = $crate::reg::Access::$access;
                const NAME: &'static str = stringify!($name);
                const DEFINED: u32 = 0 $( | $name::$field.mask() )*;
                fn from_raw(raw: u32) -> Self { Self(raw) }
                fn raw(self) -> u32 { self.0 }
            }

            impl core::fmt::Debug for $name {
                fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                    use $crate::reg::Register;
                    f.debug_struct(Self::NAME)
                        $( .field(stringify!($field), &self.get(Self::$field)) )* .finish()
                }
            }

            // Overlapping fields do not compile.
            const _: () = {
                let mut used = 0;
                $( assert!(used & $name::$field.mask() == 0, "fields overlap");
                   used |= $name::$field.mask(); )*
                let _ = used;
            };
        )*

        /// Every register, in the order written.
        pub const TABLE: &[$crate::reg::RegisterInfo] = &[$(
            $crate::reg::RegisterInfo {
                name: stringify!($name),
                offset: $offset,
                access: $crate::reg::Access::$access,
                defined: <$name as $crate::reg::Register>::DEFINED,
                doc: concat!($($doc),*),
                fields: &[$(
                    $crate::reg::FieldInfo {
                        name: stringify!($field), high: $high, low: $low, doc: concat!($($fdoc),*),
                    },
                )*],
            },
        )*];
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::regs::{Ctrl, Status, TABLE};

    #[test]
    fn setting_a_field_leaves_the_others() {
        let status = Status::from_raw(0x100).with(Status::STATE, 2);
        assert_eq!(status.raw(), 0x102);
    }

    #[test]
    #[should_panic(expected = "does not fit Status")]
    fn a_value_wider_than_its_field_is_a_bug() {
        let _ = Status::default().with(Status::STATE, 16);
    }

    #[test]
    fn debug_prints_fields_by_name() {
        insta::assert_snapshot!(alloc::format!("{:?}", Ctrl::from_raw(1)), @"Ctrl { ENABLE: true, RESET: false }");
    }

    #[test]
    fn the_table_is_in_offset_order_without_overlap() {
        for pair in TABLE.windows(2) {
            assert!(
                pair[0].offset + 4 <= pair[1].offset,
                "{} overlaps {}",
                pair[0].name,
                pair[1].name
            );
        }
        assert!(TABLE.iter().all(|r| r.offset % 4 == 0 && r.offset < 0x1_0000));
    }
}
