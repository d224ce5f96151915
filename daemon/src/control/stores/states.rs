//! Which states of a store follow one another.

use super::State;

impl State {
    /// The arrows of the picture in [`super`].
    pub(super) fn may_become(&self, next: &Self) -> bool {
        match self {
            Self::Creating | Self::Failed(_) => matches!(next, Self::Opening | Self::Failed(_)),
            Self::Opening => !matches!(next, Self::Creating),
            Self::Ready => matches!(next, Self::Failed(_)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_made_then_opened_then_serves_or_fails_and_is_opened_again() {
        let failed = State::Failed(String::new());
        let all = [State::Creating, State::Opening, State::Ready, failed.clone()];
        let follow = |from: &State| all.iter().map(|next| from.may_become(next)).collect::<Vec<_>>();
        assert_eq!(follow(&State::Creating), [false, true, false, true]);
        assert_eq!(follow(&State::Opening), [false, true, true, true]);
        assert_eq!(follow(&State::Ready), [false, false, false, true]);
        assert_eq!(follow(&failed), [false, true, false, true]);
    }
}
