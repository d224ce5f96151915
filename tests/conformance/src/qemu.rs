//! qemu's own initiator: `qemu-img` and `qemu-io` on `iscsi://`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::cunit::{Outcome, Test};

/// Bytes of the image that is copied: more than one command has.
const IMAGE: usize = 24 << 20;

/// Copies an image to the target at `url` and back, and writes, compares and discards parts of it.
pub(crate) async fn test(url: &str, folder: &Path) -> Vec<Test> {
    let image = folder.join("image.raw");
    let copy = folder.join("copy.raw");
    let steps = [
        ("qemu-img info", info(url).await),
        ("qemu-img copies an image to the volume and compares it", copy_to(url, &image).await),
        ("qemu-img copies the volume to an image", copy_from(url, &image, &copy).await),
        ("qemu-io writes, reads, discards and zeroes", parts(url).await),
    ];
    for file in [image, copy] {
        // Not there if a step failed.
        let _ = fs::remove_file(file);
    }
    let told = |(name, result): (&str, Result<()>)| {
        let outcome = result.map_or_else(|error| Outcome::Failed(format!("{error:#}")), |()| Outcome::Passed);
        Test { name: name.to_owned(), short: name.to_owned(), outcome }
    };
    steps.into_iter().map(told).collect()
}

async fn info(url: &str) -> Result<()> {
    let said = run("qemu-img", &["info", "-f", "raw", url]).await?;
    ensure!(said.contains("virtual size: 1 GiB"), "{said}");
    Ok(())
}

async fn copy_to(url: &str, image: &Path) -> Result<()> {
    // Blocks that all differ, with a hole.
    let mut content: Vec<u8> = (0..IMAGE).map(|at| (at >> 12) as u8 ^ (at >> 20) as u8 ^ at as u8).collect();
    content[8 << 20..12 << 20].fill(0);
    fs::write(image, content)?;
    let path = image.display().to_string();
    run("qemu-img", &["convert", "-n", "-t", "none", "-f", "raw", "-O", "raw", &path, url]).await?;
    // The rest of the volume reads as zeroes, as what is behind the image's end counts.
    let said = run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &path, url]).await?;
    ensure!(said.contains("Images are identical"), "{said}");
    Ok(())
}

async fn copy_from(url: &str, image: &Path, copy: &Path) -> Result<()> {
    let path = copy.display().to_string();
    run("qemu-img", &["convert", "-f", "raw", "-O", "raw", url, &path]).await?;
    let (expected, found) = (fs::read(image)?, fs::File::open(copy)?);
    ensure!(found.metadata()?.len() == 1 << 30, "the copy has another size");
    let mut start = vec![0; expected.len()];
    std::os::unix::fs::FileExt::read_exact_at(&found, &mut start, 0)?;
    ensure!(start == expected, "the copy differs");
    Ok(())
}

async fn parts(url: &str) -> Result<()> {
    let commands = [
        "write -P 0x5a 32M 1M",
        "write -f -P 0xa5 33M 64k",
        "flush",
        "read -P 0x5a 32M 1M",
        "read -P 0xa5 33M 64k",
        "discard 32M 512k",
        "read -P 0 32M 512k",
        "read -P 0x5a 33280k 512k",
        "write -z -u 33M 64k",
        "read -P 0 33M 64k",
    ];
    let mut arguments = vec!["-f", "raw", "-t", "none"];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    arguments.push(url);
    let said = run("qemu-io", &arguments).await?;
    ensure!(!said.contains("Pattern verification failed") && !said.contains("failed:"), "{said}");
    Ok(())
}

/// Runs a program to its end and returns what it says.
pub(crate) async fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).kill_on_drop(true).output().await;
    let output = output.with_context(|| format!("cannot run {program}"))?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{program} {} ({}): {said}", arguments.join(" "), output.status);
    Ok(said)
}
