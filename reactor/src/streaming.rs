//! Copies to memory that no cache holds and nobody is about to read.
//!
//! An ordinary copy reads every line of memory before it writes it, which is most of what a write to a large memory disk costs. Streaming
//! stores leave that out, and the caches as well. They may be overtaken by what comes after them until a fence; a fence costs as much as they
//! save. So those not fenced yet are remembered, and there is a fence only before one of them is touched again, or when they are many.

use std::cell::RefCell;
use std::ops::Range;

use smallvec::SmallVec;

/// How many copies go without a fence at most.
const UNFENCED: usize = 16;

/// From how many bytes on the caches are left out.
const LONG: usize = 2048;

/// The copies into one piece of memory that may still be under way.
#[derive(Default)]
pub(crate) struct Streaming {
    unfenced: RefCell<SmallVec<[Range<usize>; UNFENCED]>>,
}

impl Streaming {
    /// Copies `from` to `at` of `memory`. Everything else that touches the memory is announced by [`Streaming::touch`].
    pub(crate) fn copy(&self, memory: &mut [u8], at: usize, from: &[u8]) {
        let range = at..at + from.len();
        self.touch(range.clone());
        if from.len() < LONG || !is_available() {
            return memory[range].copy_from_slice(from);
        }
        let mut unfenced = self.unfenced.borrow_mut();
        if unfenced.len() == UNFENCED {
            fence();
            unfenced.clear();
        }
        unfenced.push(range.clone());
        stream(&mut memory[range], from);
    }

    /// To be called before a range of the memory is read or written in any other way.
    pub(crate) fn touch(&self, range: Range<usize>) {
        let mut unfenced = self.unfenced.borrow_mut();
        if unfenced.iter().any(|other| other.start < range.end && range.start < other.end) {
            fence();
            unfenced.clear();
        }
    }
}

impl Drop for Streaming {
    /// Before the memory becomes somebody else's.
    fn drop(&mut self) {
        fence();
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
const fn is_available() -> bool {
    true
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
fn stream(into: &mut [u8], from: &[u8]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
    assert_eq!(into.len(), from.len());
    // SAFETY: any bytes are a good `__m128i`.
    let (head, middle, tail) = unsafe { into.align_to_mut::<__m128i>() };
    let (from_head, rest) = from.split_at(head.len());
    let (from_middle, from_tail) = rest.split_at(size_of_val(middle));
    head.copy_from_slice(from_head);
    tail.copy_from_slice(from_tail);
    for (into, from) in middle.iter_mut().zip(from_middle.chunks_exact(size_of::<__m128i>())) {
        // SAFETY: `from` has the sixteen bytes that are read, in any alignment; `into` is aligned and ours alone, and the caller sees to it that
        // it is not touched before a fence. Every x86-64 has SSE2.
        unsafe { _mm_stream_si128(into, _mm_loadu_si128(from.as_ptr().cast())) };
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
fn fence() {
    // SAFETY: it takes nothing, and every x86-64 has it.
    unsafe { std::arch::x86_64::_mm_sfence() };
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
const fn is_available() -> bool {
    false
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
fn stream(into: &mut [u8], from: &[u8]) {
    into.copy_from_slice(from);
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
const fn fence() {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 64 << 10;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn copies_of_any_place_and_length_arrive(copies in prop::collection::vec((0..SIZE, 0..SIZE, any::<u8>()), 1..60)) {
            let streaming = Streaming::default();
            let (mut memory, mut expected) = (vec![0; SIZE], vec![0; SIZE]);
            for (one, other, byte) in copies {
                let (from, to) = (one.min(other), one.max(other));
                let bytes: Vec<u8> = (0..to - from).map(|at| byte.wrapping_add(at as u8)).collect();
                streaming.copy(&mut memory, from, &bytes);
                expected[from..to].copy_from_slice(&bytes);
                prop_assert!(streaming.unfenced.borrow().len() <= UNFENCED);
                streaming.touch(from..to);
                prop_assert_eq!(&memory[from..to], &expected[from..to]);
            }
            streaming.touch(0..SIZE);
            prop_assert_eq!(memory, expected);
        }
    }

    #[test]
    fn only_what_is_touched_again_is_fenced() {
        let streaming = Streaming::default();
        let mut memory = vec![0; SIZE];
        let streams = usize::from(is_available());
        let unfenced = |streaming: &Streaming| streaming.unfenced.borrow().len();
        streaming.copy(&mut memory, 0, &[1; LONG]);
        streaming.copy(&mut memory, 2 * LONG, &[2; LONG]);
        streaming.touch(LONG..2 * LONG);
        assert_eq!(unfenced(&streaming), 2 * streams);
        streaming.copy(&mut memory, LONG - 1, &[3; LONG]);
        assert_eq!(unfenced(&streaming), streams, "over the first: fenced, and the only one since");
        streaming.touch(LONG..LONG + 1);
        assert_eq!(unfenced(&streaming), 0);
        assert_eq!(memory[LONG - 2..=LONG], [1, 3, 3]);
    }
}
