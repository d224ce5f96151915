//! Serial numbers of 32 bits that start over (RFC 1982): CmdSN, StatSN, DataSN.

/// Whether `a` comes before `b`. Numbers that are half of all numbers apart are in no order.
pub(crate) fn before(a: u32, b: u32) -> bool {
    let distance = b.wrapping_sub(a);
    distance != 0 && distance < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::before;

    #[test]
    fn numbers_are_in_order_over_their_end() {
        assert!(before(1, 2) && before(u32::MAX, 0) && before(0, (1 << 31) - 1));
        assert!(!before(2, 1) && !before(3, 3) && !before(0, 1 << 31) && !before(1 << 31, 0));
    }
}
