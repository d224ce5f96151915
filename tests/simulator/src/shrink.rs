//! Making a failure smaller: the same seed with parts of its plan left out, as long as it still fails.

use crate::attempt::attempt;
use crate::{Options, Scenario, Without};

/// How often a shrink runs the scenario at most.
const RUNS: u32 = 300;

/// How often the hosts' work may be halved.
const HALVINGS: u8 = 6;

/// A smaller failure.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// What of the plan is left out.
    pub without: Without,
    /// What it says now; it may be another invariant than before.
    pub failure: String,
    /// How many runs it took.
    pub runs: u32,
}

/// Leaves out of a failing run what it can fail without: the limits of volumes, volumes, then steps in ever smaller groups, then requests.
pub fn shrink(scenario: &Scenario, options: Options, failure: String) -> Shrunk {
    let mut search = Search { scenario, options, best: Shrunk { without: options.without, failure, runs: 0 } };
    loop {
        let before = search.best.without;
        search.leave_out_limits();
        search.leave_out_volumes();
        search.leave_out_steps();
        search.leave_out_work();
        if search.best.without == before || search.best.runs >= RUNS {
            return search.best;
        }
    }
}

struct Search<'a> {
    scenario: &'a Scenario,
    options: Options,
    best: Shrunk,
}

impl Search<'_> {
    /// Whether it still fails; then this is the best so far.
    fn attempt(&mut self, without: Without) -> bool {
        if self.best.runs >= RUNS {
            return false;
        }
        self.best.runs += 1;
        match attempt(self.scenario, Options { without, log_lines: 0, ..self.options }) {
            Ok(_) => false,
            Err(failure) => {
                self.best = Shrunk { without, failure, runs: self.best.runs };
                true
            }
        }
    }

    fn parts(&self) -> (Vec<usize>, Vec<usize>) {
        let options = Options { without: self.best.without, ..self.options };
        self.scenario.planner.map_or_else(Default::default, |planner| planner.parts(options))
    }

    /// First, because most failures have nothing to do with them, and without them a run is shorter.
    fn leave_out_limits(&mut self) {
        let options = Options { without: self.best.without, ..self.options };
        if self.scenario.planner.is_some_and(|planner| planner.has_limits(options)) {
            self.attempt(self.best.without.and_no_limits());
        }
    }

    fn leave_out_volumes(&mut self) {
        let (_, volumes) = self.parts();
        for volume in volumes {
            if self.parts().1.len() > 1 {
                self.attempt(self.best.without.and_volume(volume));
            }
        }
    }

    fn leave_out_steps(&mut self) {
        let mut group = self.parts().0.len().div_ceil(2);
        while group > 0 {
            for steps in self.parts().0.rchunks(group) {
                let without = steps.iter().fold(self.best.without, |without, step| without.and_step(*step));
                self.attempt(without);
            }
            group /= 2;
        }
    }

    fn leave_out_work(&mut self) {
        while self.best.without.halvings < HALVINGS {
            if !self.attempt(self.best.without.and_half_of_the_work()) {
                return;
            }
        }
    }
}
