//! `daos filesystem`.

use std::{path::Path, str::FromStr, time::Duration};

use daos::{
    Anchor, Client, ClientEnv, Fs, Objects, OpenOptions,
    copy::{self, CopyOptions, Progress},
    fs::{Entry, FileType, Inode},
};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::json;

use super::{Opened, arguments::FilesystemCommand};
use crate::output::{Answer, Failure, table};

/// Entries that one request lists.
const PAGE_ENTRIES: u32 = 256;

/// A place in a POSIX container: `daos://POOL/CONT/PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Remote {
    pool: String,
    container: String,
    path: String,
}

impl FromStr for Remote {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let wrong = || {
            Failure::new(22, format!("{text:?} names no place in a container: write daos://POOL/CONT/PATH"))
        };
        let rest = text.strip_prefix("daos://").ok_or_else(wrong)?;
        let (pool, rest) = rest.split_once('/').ok_or_else(wrong)?;
        let (container, path) = rest.split_once('/').unwrap_or((rest, ""));
        if pool.is_empty() || container.is_empty() {
            return Err(wrong());
        }
        Ok(Self { pool: pool.into(), container: container.into(), path: format!("/{path}") })
    }
}

pub async fn run(client: &Client, command: FilesystemCommand, json_wanted: bool) -> Result<Answer, Failure> {
    match command {
        FilesystemCommand::Copy { src, dst, depth, quiet } => {
            let options =
                CopyOptions { files_in_flight: depth as usize, owners: is_root(), ..CopyOptions::default() };
            let bar = progress_bar(quiet || json_wanted);
            match (src.starts_with("daos://"), dst.starts_with("daos://")) {
                (false, true) => copy_in(client, Path::new(&src), &dst.parse()?, options, bar).await,
                (true, false) => copy_out(client, &src.parse()?, Path::new(&dst), options, bar).await,
                (false, false) => {
                    Err(Failure::new(22, "both places are local: use cp; one must be daos://POOL/CONT/PATH"))
                }
                (true, true) => Err(Failure::new(
                    95,
                    "both places are in containers: copy out to a local folder first, then in",
                )),
            }
        }
        FilesystemCommand::List { path, long } => list(client, &path.parse()?, long).await,
        FilesystemCommand::Stat { path } => stat(client, &path.parse()?).await,
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

async fn copy_in(
    client: &Client,
    from: &Path,
    to: &Remote,
    options: CopyOptions,
    bar: ProgressBar,
) -> Result<Answer, Failure> {
    // What is wrong with the source is said before anything is opened.
    std::fs::symlink_metadata(from).map_err(|error| {
        Failure::new(error.raw_os_error().unwrap_or(5), format!("{}: {error}", from.display()))
    })?;
    let opened = Opened::open(client, &to.pool, &to.container, OpenOptions::WRITE).await?;
    let copied = async {
        let shown = bar.clone();
        let report = move |progress: &Progress| show(&shown, progress);
        Ok(copy::into_container(&opened.container, from, to.path.as_bytes(), options, report).await?)
    };
    let outcome = copied.await;
    copied_answer(opened.close(outcome).await, &bar)
}

async fn copy_out(
    client: &Client,
    from: &Remote,
    to: &Path,
    options: CopyOptions,
    bar: ProgressBar,
) -> Result<Answer, Failure> {
    let opened = Opened::open(client, &from.pool, &from.container, OpenOptions::READ).await?;
    let copied = async {
        let fs = committed(&opened).await?;
        let shown = bar.clone();
        let report = move |progress: &Progress| show(&shown, progress);
        Ok(copy::export(client.env(), &fs, from.path.as_bytes(), to, options, report).await?)
    };
    let outcome = copied.await;
    copied_answer(opened.close(outcome).await, &bar)
}

/// The file system as its newest committed epoch shows it.
async fn committed(opened: &Opened) -> Result<Fs<Objects<ClientEnv>>, Failure> {
    let epoch = opened.container.epochs().await?.container_hce;
    Ok(opened.container.mount_at(epoch).await?)
}

fn progress_bar(hidden: bool) -> ProgressBar {
    if hidden {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{spinner} {elapsed}  {msg}").expect("the template is well-formed");
    ProgressBar::new_spinner().with_style(style)
}

fn show(bar: &ProgressBar, progress: &Progress) {
    let seconds = bar.elapsed().max(Duration::from_millis(1)).as_secs_f64();
    bar.set_message(format!(
        "{} files, {}, {}/s",
        progress.files,
        HumanBytes(progress.bytes),
        HumanBytes((progress.bytes as f64 / seconds) as u64)
    ));
    bar.tick();
}

fn copied_answer(outcome: Result<Progress, Failure>, bar: &ProgressBar) -> Result<Answer, Failure> {
    let elapsed = bar.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let progress = outcome?;
    let Progress { files, directories, links, bytes, skipped } = progress;
    let mut text = format!(
        "{files} files, {directories} folders, {links} links, {} in {elapsed:.2} s ({}/s, {:.0} files/s)",
        HumanBytes(bytes),
        HumanBytes((bytes as f64 / elapsed.max(1e-3)) as u64),
        files as f64 / elapsed.max(1e-3)
    );
    if skipped > 0 {
        text += &format!("; {skipped} devices, pipes or sockets left out");
    }
    let response = json!({
        "files": files, "directories": directories, "links": links, "bytes": bytes, "skipped": skipped,
        "seconds": elapsed,
    });
    Ok(Answer::new(response, text))
}

async fn list(client: &Client, place: &Remote, long: bool) -> Result<Answer, Failure> {
    let opened = Opened::open(client, &place.pool, &place.container, OpenOptions::READ).await?;
    let listed = async {
        let fs = committed(&opened).await?;
        let (mut entries, mut anchor) = (Vec::new(), Some(Anchor::default()));
        while let Some(from) = anchor {
            let page = fs.list(&place.path, &from, PAGE_ENTRIES).await.map_err(daos::DaosError::from)?;
            entries.extend(page.items);
            anchor = page.next;
        }
        Ok(entries)
    };
    let outcome = listed.await;
    let mut entries: Vec<Entry> = opened.close(outcome).await?;
    entries.sort_by(|left, right| left.name.cmp(&right.name));
    let name = |entry: &Entry| String::from_utf8_lossy(&entry.name).into_owned();
    let text = if long {
        table(&entries.iter().map(|entry| long_row(&entry.inode, name(entry))).collect::<Vec<_>>())
    } else {
        entries.iter().map(name).collect::<Vec<_>>().join("\n")
    };
    let response: Vec<_> = entries.iter().map(|entry| attributes(&entry.inode, &name(entry))).collect();
    Ok(Answer::new(json!({ "entries": response }), text))
}

async fn stat(client: &Client, place: &Remote) -> Result<Answer, Failure> {
    let opened = Opened::open(client, &place.pool, &place.container, OpenOptions::READ).await?;
    let found = async {
        let fs = committed(&opened).await?;
        Ok(fs.lstat(&place.path).await.map_err(daos::DaosError::from)?)
    };
    let outcome = found.await;
    let inode = opened.close(outcome).await?;
    let text = table(&[long_row(&inode, place.path.clone())]) + &format!("object {}", inode.object);
    Ok(Answer::new(attributes(&inode, &place.path), text))
}

fn long_row(inode: &Inode, name: String) -> Vec<String> {
    let letter = match inode.file_type {
        FileType::File => '-',
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
    };
    let bit = |bit: u32, letter| if inode.permissions & bit != 0 { letter } else { '-' };
    let bits: String = (0..9).map(|place| bit(0o400 >> place, ['r', 'w', 'x'][place % 3])).collect();
    let seconds = inode.modified / 1_000_000_000;
    vec![
        format!("{letter}{bits}"),
        inode.uid.to_string(),
        inode.gid.to_string(),
        inode.size.to_string(),
        utc(seconds),
        name,
    ]
}

/// A time, in seconds since 1970, as people read it.
fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // The Gregorian calendar repeats every 400 years of 146,097 days. Counted from a first of March, the day that some years do
    // not have comes last, and months have 153 days in five (H. Hinnant, "chrono-compatible low-level date algorithms").
    let since_march = days + 719_468;
    let (cycle, day) = (since_march / 146_097, since_march % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..10 => (cycle * 400 + year, month + 3),
        _ => (cycle * 400 + year + 1, month - 9),
    };
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn attributes(inode: &Inode, name: &str) -> serde_json::Value {
    let file_type = match inode.file_type {
        FileType::File => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
    };
    json!({
        "name": name, "type": file_type, "mode": format!("{:04o}", inode.permissions), "uid": inode.uid,
        "gid": inode.gid, "size": inode.size, "atime_ns": inode.accessed, "mtime_ns": inode.modified,
        "ctime_ns": inode.changed, "oid": inode.object,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_the_calendar_has_them() {
        // What `date -u` prints.
        for (seconds, told) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_744_747_158, "2025-04-15T19:59:18Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (u64::MAX / 1_000_000_000, "2554-07-21T23:34:33Z"),
        ] {
            assert_eq!(utc(seconds), told);
        }
    }

    #[test]
    fn places_in_containers_are_read() {
        let place: Remote = "daos://tank/home/a/b".parse().unwrap();
        assert_eq!(
            (place.pool.as_str(), place.container.as_str(), place.path.as_str()),
            ("tank", "home", "/a/b")
        );
        assert_eq!("daos://tank/home".parse::<Remote>().unwrap().path, "/");
        for text in
            ["", "/tmp", "daos://", "daos://tank", "daos:///home/a", "daos://tank//a", "http://tank/home"]
        {
            assert!(text.parse::<Remote>().is_err(), "{text:?} was taken");
        }
    }
}
