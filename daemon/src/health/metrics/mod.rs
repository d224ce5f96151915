//! `/metrics`: docs/metrics.md.

mod backups;
mod control;
mod facts;
mod process;
mod text;
mod volumes;

use std::io;
use std::sync::Arc;

use reactor::monotonic_now;

use self::text::{CONTENT_TYPE, Text, gauge};
use super::http::Answer;
use super::pages::Pages;

/// Volumes with series of their own. A node serves fewer; whatever happens, this bounds what a scrape takes.
const MOST_VOLUMES: usize = 4096;
/// Volumes that are written at once: others get their turn after them.
const AT_ONCE: usize = 64;

impl Pages {
    /// Writes all metrics, part by part.
    pub(super) async fn metrics(&self, answer: Answer<'_>) -> io::Result<()> {
        let ready = self.not_ready().await.is_empty();
        self.ask_for_facts().await;
        answer.begin(CONTENT_TYPE).await?;
        let mut text = Text::default();
        let (volumes, facts) = {
            let mut board = self.board.borrow_mut();
            let now = monotonic_now();
            let volumes = board.volumes();
            process::write_process(&mut text, board.about.started);
            process::write_runs(&mut text, &board, ready, now);
            process::write_reactors(&mut text, &mut board, now);
            (volumes, Arc::clone(&board.facts))
        };
        let left_out = volumes.len().saturating_sub(MOST_VOLUMES);
        text.single(gauge("ashlar_metrics_left_out_volumes", "Volumes beyond those that have series here."), left_out);
        let volumes = &volumes[..volumes.len() - left_out];
        for (index, family) in volumes::FAMILIES.into_iter().enumerate() {
            text.family(family);
            for some in volumes.chunks(AT_ONCE) {
                for volume in some {
                    let progress = self.board.borrow().progress(volume, monotonic_now());
                    volumes::write(&mut text, index, volume, progress);
                }
                answer.send(&text.take()).await?;
            }
        }
        let engines = &facts.engines[..facts.engines.len().min(MOST_VOLUMES)];
        let mut step = 0;
        while facts::write_engines(&mut text, step, engines) {
            answer.send(&text.take()).await?;
            step += 1;
        }
        facts::write_stores(&mut text, &facts.stores);
        control::write(&mut text, &facts.load);
        backups::write(&mut text, &facts.load.backups);
        answer.send(&text.take()).await
    }
}
