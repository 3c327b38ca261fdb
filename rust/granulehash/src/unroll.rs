//! Loops that the compiler must not keep.

/// Sixteen times the same with the number at hand as a constant: the schedule stays in registers
/// only when its indices are known.
macro_rules! sixteen {
    ($i:ident => $body:block) => {
        crate::unroll::each!($i $body 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
}

/// Eight times the same.
#[cfg(target_arch = "aarch64")]
macro_rules! eight {
    ($i:ident => $body:block) => {
        crate::unroll::each!($i $body 0 1 2 3 4 5 6 7)
    };
}

macro_rules! each {
    ($i:ident $body:block $($number:literal)*) => {
        $({ const $i: usize = $number; $body })*
    };
}

pub(crate) use each;
#[cfg(target_arch = "aarch64")]
pub(crate) use eight;
pub(crate) use sixteen;
