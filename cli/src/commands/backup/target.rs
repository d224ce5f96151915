//! `ashlar backup-target`.

use std::fmt::Write;

use anyhow::bail;
use proto::v1::{
    BackupTarget, BackupTargetCheck, CheckBackupTargetRequest, CreateBackupTargetRequest, DeleteBackupTargetRequest,
    GetBackupTargetRequest,
};

use super::render::or_dash;
use crate::arguments::TargetCommand;
use crate::client::{Client, answer};
use crate::commands::utc;
use crate::output::{End, Name, Output, Table, Wide, Width, look_on};

/// From which skew of its clock on a target refuses signatures, in seconds.
const LARGEST_SKEW: i64 = 300;

pub(in crate::commands) async fn run(client: &Client, command: &TargetCommand, output: Output) -> anyhow::Result<()> {
    match command {
        TargetCommand::Create { name, url, credentials, unchecked, uuid } => {
            let credentials_file = match credentials {
                // A path that is no text cannot be sent.
                Some(path) => std::path::absolute(path)?.to_str().map(str::to_owned).unwrap_or_default(),
                None => String::new(),
            };
            let request = CreateBackupTargetRequest {
                name: name.clone(),
                url: url.clone(),
                credentials_file,
                uuid: uuid.clone().unwrap_or_default(),
                unchecked: *unchecked,
            };
            let target = answer(client.targets().create(request).await)?;
            output.print(&target, |target, _| render(target))
        }
        TargetCommand::List { watch } => {
            let fetch = async || Ok(client.list_targets().await?.into());
            let follow = async |_: &Vec<_>| client.follow_targets("").await.map(Some);
            look_on(*watch, output, fetch, follow, |targets: &Vec<_>, width| render_list(targets, width)).await
        }
        TargetCommand::Show { target, watch } => {
            let request = GetBackupTargetRequest { target: target.clone() };
            let fetch = async || Ok(answer(client.targets().get(request.clone()).await)?.into());
            let follow = async |target: &BackupTarget| client.follow_targets(&target.uuid).await.map(Some);
            look_on(*watch, output, fetch, follow, |target, _| render(target)).await
        }
        TargetCommand::Delete { target, uuid } => {
            let expected_uuid = uuid.clone().unwrap_or_default();
            let request = DeleteBackupTargetRequest { target: target.clone(), expected_uuid };
            let deleted = answer(client.targets().delete(request).await)?;
            output.print(&deleted, |_, _| format!("target {target} is forgotten; what is stored there stays\n"))
        }
        TargetCommand::Check { target } => {
            let request = CheckBackupTargetRequest { target: target.clone() };
            let check = answer(client.targets().check(request).await)?;
            output.print(&check, |check, _| render_check(check))?;
            judge(&check)
        }
    }
}

fn render_list(targets: &[BackupTarget], width: Width) -> String {
    if targets.is_empty() {
        return "No backup targets are known here. Make one with `ashlar backup-target create`.\n".to_owned();
    }
    let mut table = Table::new(&[Name("NAME"), End("URL"), Wide("CREDENTIALS"), Wide("UUID"), Wide("CREATED")]);
    for target in targets {
        table.row(vec![
            target.name.clone(),
            target.url.clone(),
            or_dash(&target.credentials_file),
            target.uuid.clone(),
            utc(target.created_at_unix_ms),
        ]);
    }
    table.render(width)
}

fn render(target: &BackupTarget) -> String {
    let BackupTarget { name, uuid, url, credentials_file, created_at_unix_ms, mark } = target;
    let (file, created) = (or_dash(credentials_file), utc(*created_at_unix_ms));
    let mark = if mark.is_empty() { String::new() } else { format!("mark         backupstore/{mark}\n") };
    format!(
        "target       {name}\nuuid         {uuid}\nurl          {url}\n{mark}credentials  {file}\ncreated      {created}\n"
    )
}

fn render_check(check: &BackupTargetCheck) -> String {
    let mut text = String::new();
    for step in &check.steps {
        let what = match step.took_us {
            Some(took) => format!("ok, {}.{:03} ms", took / 1000, took % 1000),
            None => format!("{} ({})", step.error, step.failure),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<15} {what}", step.step);
    }
    if let Some(skew) = check.skew_seconds {
        let much = if skew.abs() > LARGEST_SKEW { ": too much for signatures, set the clocks" } else { "" };
        let _ = writeln!(text, "{:<15} {skew:+} s{much}", "clock");
    }
    if let Some(honoured) = check.conditional_put {
        let _ = writeln!(text, "{:<15} {}", "conditional PUT", if honoured { "honoured" } else { "ignored" });
    }
    text
}

fn judge(check: &BackupTargetCheck) -> anyhow::Result<()> {
    match check.steps.iter().find(|step| step.took_us.is_none()) {
        Some(step) => bail!("the target fails at `{}`: {}", step.step, step.error),
        None if !check.good => bail!("the target fails its check"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proto::v1::BackupTargetStep;

    use super::*;

    fn step(step: &str, error: &str) -> BackupTargetStep {
        let good = error.is_empty();
        BackupTargetStep {
            step: step.to_owned(),
            took_us: good.then_some(1234),
            failure: if good { String::new() } else { "auth".to_owned() },
            error: error.to_owned(),
        }
    }

    #[test]
    fn a_check_tells_each_step_and_fails_with_one() {
        let good = BackupTargetCheck {
            good: true,
            steps: vec![step("resolve", ""), step("connect", "")],
            skew_seconds: Some(-2),
            conditional_put: Some(false),
            ..BackupTargetCheck::default()
        };
        let expected = "\
resolve         ok, 1.234 ms
connect         ok, 1.234 ms
clock           -2 s
conditional PUT ignored
";
        assert_eq!(render_check(&good), expected);
        assert!(judge(&good).is_ok());
        let steps = vec![step("list", "403 AccessDenied")];
        let bad = BackupTargetCheck { steps, skew_seconds: Some(900), ..BackupTargetCheck::default() };
        let text = render_check(&bad);
        assert!(text.contains("403 AccessDenied (auth)") && text.contains("+900 s: too much"), "{text}");
        assert!(judge(&bad).is_err_and(|error| error.to_string().contains("`list`")));
        assert!(judge(&BackupTargetCheck::default()).is_err());
    }

    #[test]
    fn targets_fit_80_columns_without_their_keys() {
        let target = BackupTarget {
            name: "main".to_owned(),
            url: format!("s3://bucket@eu-central-1/{}/", "p".repeat(90)),
            credentials_file: "/etc/ashlar/s3.env".to_owned(),
            ..BackupTarget::default()
        };
        let text = render_list(std::slice::from_ref(&target), Width::Narrow);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(!render(&target).contains("mark"));
        assert!(render(&BackupTarget { mark: "m".to_owned(), ..target.clone() }).contains("backupstore/m\n"));
        assert!(render_list(&[target], Width::Full).contains("/etc/ashlar/s3.env"));
        assert!(render_list(&[], Width::Narrow).contains("backup-target create"));
    }
}
