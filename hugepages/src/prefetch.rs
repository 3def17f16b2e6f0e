//! Memory that is needed soon.

/// Has the first byte of a value brought into the caches, and the line of memory around it, without waiting
/// for it: a hint, which changes nothing but the time that it takes. Nothing happens on processors where
/// there is no such instruction, or none that is known here.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the instruction reads nothing into the program and cannot fault, whatever the address; this
        // one is of a value that lives.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_hint_changes_nothing() {
        let values = [7u8; 3];
        values.iter().for_each(super::prefetch);
        super::prefetch(&());
        assert_eq!(values, [7; 3]);
    }
}
