//! What a backup, a restore, a removal or a verification does until it ends.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::bail;
use proto::v1::{GetOperationRequest, Operation, OperationState};

use crate::client::{Client, answer, is_transient};
use crate::commands::operation;
use crate::output::{Output, Progress, duration};

/// How often a wait looks.
const POLL: Duration = Duration::from_millis(500);

/// Prints what was begun; with `wait`, how it ended. `done` is the word for its bytes.
///
/// # Errors
/// With `wait`, when it ended otherwise than well.
pub(super) async fn follow(
    client: &Client,
    begun: Operation,
    done: &str,
    wait: bool,
    output: Output,
) -> anyhow::Result<()> {
    if !wait {
        return operation::show(&begun, output);
    }
    let ended = until_ended(client, begun, done).await?;
    operation::show(&ended, output)?;
    judge(&ended)
}

/// A daemon that is restarted goes on with its work: it is asked again until it answers.
async fn until_ended(client: &Client, begun: Operation, done: &str) -> anyhow::Result<Operation> {
    let mut progress = Progress::new(done);
    let mut found = begun;
    while !has_ended(&found) {
        let (bytes, total) = (found.done_bytes.unwrap_or(0), found.total_bytes.unwrap_or(0));
        progress.show_with(bytes, total, &what_waits(&found, now()));
        tokio::time::sleep(POLL).await;
        match answer(client.operations().get(GetOperationRequest { id: found.id.clone() }).await) {
            Ok(operation) => found = operation,
            Err(error) if is_transient(&error) => progress.show_with(bytes, total, "no answer, trying again"),
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

fn has_ended(operation: &Operation) -> bool {
    matches!(operation.state(), OperationState::Succeeded | OperationState::Failed | OperationState::Cancelled)
}

/// What it waits for, and how long.
fn what_waits(operation: &Operation, now: i64) -> String {
    let Some(next) = operation.next_try_unix_ms else { return String::new() };
    let rest = duration(u64::try_from(next.saturating_sub(now)).unwrap_or(0));
    let failure = if operation.failure.is_empty() { &operation.reason } else { &operation.failure };
    format!("waits ({failure}), next try in {rest}")
}

fn judge(operation: &Operation) -> anyhow::Result<()> {
    match operation.state() {
        OperationState::Succeeded => Ok(()),
        state => bail!("{} {state}: {}", operation.kind(), operation.reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_says_for_what_and_how_long() {
        let waiting = Operation {
            state: OperationState::Waiting.into(),
            reason: "listing: s3.example: server misbehaving".to_owned(),
            failure: "resolve".to_owned(),
            next_try_unix_ms: Some(61_000),
            ..Operation::default()
        };
        assert_eq!(what_waits(&waiting, 1000), "waits (resolve), next try in 1 min 00 s");
        assert_eq!(what_waits(&waiting, 100_000), "waits (resolve), next try in 0 s");
        assert_eq!(what_waits(&Operation::default(), 0), "");
        assert!(!has_ended(&waiting));
    }

    #[test]
    fn only_success_is_good() {
        let failed =
            Operation { state: OperationState::Failed.into(), reason: "gone".to_owned(), ..Operation::default() };
        assert!(has_ended(&failed) && judge(&failed).is_err_and(|error| error.to_string().ends_with("failed: gone")));
        let good = Operation { state: OperationState::Succeeded.into(), ..Operation::default() };
        assert!(has_ended(&good) && judge(&good).is_ok());
    }
}
