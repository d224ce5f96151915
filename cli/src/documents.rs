//! `ashlar completions` and `ashlar man`: made from the definition of the command line, so they cannot say anything else.

use std::fs;
use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;

use crate::arguments::{Arguments, Shell};
use crate::output;

pub(crate) fn completions(shell: Shell) -> anyhow::Result<()> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "ashlar", &mut text);
    output::write(&String::from_utf8(text)?)?;
    Ok(())
}

/// A page for each command: `ashlar.1`, `ashlar-volume.1`, `ashlar-volume-create.1` and so on.
pub(crate) fn man(to: &Path) -> anyhow::Result<()> {
    let told = || to.display().to_string();
    fs::create_dir_all(to).with_context(told)?;
    clap_mangen::generate_to(Arguments::command(), to).with_context(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_its_page() {
        let folder = tempfile::tempdir().expect("a folder");
        man(&folder.path().join("man1")).expect("pages");
        let page = |name: &str| fs::read_to_string(folder.path().join("man1").join(name));
        let main = page("ashlar.1").expect("the page of the program");
        assert!(main.contains("Exit codes") && main.contains("ashlar\\-volume(1)"), "{main}");
        let create = page("ashlar-volume-create.1").expect("the page of a command");
        assert!(create.contains("\\-\\-size"), "{create}");
        assert!(page("ashlar-volume-snapshot.1").is_err(), "it is hidden");
    }
}
