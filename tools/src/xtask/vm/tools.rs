//! QEMU and a kernel, from Debian's packages: fetched into a folder, run from there, nothing installed.
//!
//! `apt-get` believes in an empty system of its own below that folder, so that it fetches all that QEMU
//! needs down to the C library; it reads its settings, and the mirror, where this machine has them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::child;
use crate::setup;

/// The release, whose backports have a QEMU with `vfio-user-pci` (10.1 or newer) and whose kernel has VFIO.
const RELEASE: &str = "trixie";
const EMULATOR: &str = "qemu-system-x86";
const KERNEL: &str = "linux-image-cloud-amd64";
/// The kernel's modules that are needed, in the order in which they are loaded.
const MODULES: [&str; 5] = ["irqbypass", "vfio", "vfio_iommu_type1", "vfio-pci-core", "vfio-pci"];
/// What the packages of a Debian release are signed with.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Counts changes of how the folder is filled.
const RECIPE: u32 = 1;

/// About 85 MB come over the line.
const FETCH_LIMIT: Duration = Duration::from_secs(10 * 60);
const QUICK_LIMIT: Duration = Duration::from_secs(2 * 60);

/// The folder, ready to be used.
pub(crate) struct Tools(PathBuf);

impl Tools {
    /// Finds what an earlier run fetched, or fetches it.
    pub(crate) fn ready() -> Result<Self> {
        let tools = Self(setup::target().join("vm/tools"));
        let stamp = tools.0.join("recipe");
        let wanted = format!("{RECIPE} {RELEASE} {EMULATOR} {KERNEL}\n");
        if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
            return Ok(tools);
        }
        let started = Instant::now();
        println!("fetching QEMU and a kernel (about 85 MB) into {}", tools.0.display());
        tools.fetch().context(
            "the virtual machine cannot be made: QEMU and a kernel could not be had from Debian's \
             packages; it needs x86-64, apt-get with a Debian mirror in its sources, and a network",
        )?;
        fs::write(&stamp, wanted)?;
        println!("fetched and unpacked in {:.1} s", started.elapsed().as_secs_f64());
        Ok(tools)
    }

    /// Runs QEMU, with the loader and the libraries that came with it.
    pub(crate) fn qemu(&self) -> Command {
        let root = self.0.join("root");
        let mut command = Command::new(root.join("usr/lib64/ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(root.join("usr/lib/x86_64-linux-gnu"));
        command.arg(root.join("usr/bin/qemu-system-x86_64"));
        command.arg("-L").arg(root.join("usr/share/qemu"));
        command.arg("-L").arg(root.join("usr/share/seabios"));
        command
    }

    /// The kernel.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.0.join("vmlinuz")
    }

    /// Its modules, in the order in which they are loaded.
    pub(crate) fn modules(&self) -> impl Iterator<Item = (String, PathBuf)> {
        let folder = self.0.join("modules");
        (0..).zip(MODULES).map(move |(number, name)| {
            let name = format!("{number:02}-{name}.ko");
            let path = folder.join(&name);
            (name, path)
        })
    }

    fn fetch(&self) -> Result<()> {
        ensure!(cfg!(target_arch = "x86_64"), "this machine is no x86-64");
        ensure!(Path::new(KEYS).exists(), "there is no {KEYS}; install debian-archive-keyring");
        let _ = fs::remove_dir_all(&self.0);
        self.settle()?;
        self.apt("apt-get", &["-qq", "update"])?;
        let backports = format!("{RELEASE}-backports");
        let install = ["-qq", "-y", "--download-only", "-t", &backports, "install", EMULATOR];
        self.apt("apt-get", &install)?;
        let root = self.0.join("root");
        self.unpack(&self.0.join("apt/cache/archives"), &root)?;
        let depends = self.apt("apt-cache", &["depends", &format!("{KERNEL}/{RELEASE}")])?;
        let image = depends.lines().find_map(|line| {
            let name = line.trim().strip_prefix("Depends: ")?;
            name.starts_with("linux-image").then(|| name.to_owned())
        });
        let image = image.with_context(|| format!("{KERNEL} depends on no kernel"))?;
        let folder = self.0.join("kernel");
        fs::create_dir_all(&folder)?;
        self.apt("apt-get", &["-qq", "download", &image])?;
        self.unpack(&self.0.join("apt"), &folder)?;
        self.take_kernel(&folder)?;
        for waste in ["kernel", "apt", "root/usr/share/doc", "root/usr/share/locale"] {
            // Only room on the disk.
            let _ = fs::remove_dir_all(self.0.join(waste));
        }
        self.check()
    }

    /// Makes the system that `apt-get` believes in.
    fn settle(&self) -> Result<()> {
        let apt = self.0.join("apt");
        for folder in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(apt.join(folder))?;
        }
        fs::write(apt.join("status"), "")?;
        let mirror = mirror()?;
        let line = |suite: &str| format!("deb [signed-by={KEYS}] {mirror} {suite} main\n");
        let backports = format!("{RELEASE}-backports");
        fs::write(apt.join("sources.list"), line(RELEASE) + &line(&backports))?;
        let at = |path: &str| apt.join(path).display().to_string();
        let settings = [
            ("Dir::Etc::sourcelist", at("sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
            ("Dir::Etc::preferences", "/dev/null".into()),
            ("Dir::Etc::preferencesparts", "/dev/null".into()),
            ("Dir::State", at("state")),
            ("Dir::State::lists", at("state/lists")),
            ("Dir::State::status", at("status")),
            ("Dir::Cache", at("cache")),
            ("Dir::Cache::archives", at("cache/archives")),
            ("APT::Architecture", "amd64".into()),
            ("APT::Install-Recommends", "false".into()),
            ("APT::Sandbox::User", "".into()),
            ("Acquire::Languages", "none".into()),
            ("Acquire::Retries", "3".into()),
            ("Acquire::http::Timeout", "30".into()),
            ("Acquire::https::Timeout", "30".into()),
            ("Debug::NoLocking", "true".into()),
        ];
        let mut text: String =
            settings.iter().map(|(key, value)| format!("{key} \"{value}\";\n")).collect();
        text += "APT::Architectures { \"amd64\"; };\n";
        fs::write(apt.join("apt.conf"), text)?;
        Ok(())
    }

    fn apt(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let folder = self.0.join("apt");
        let mut command = Command::new(program);
        command.args(arguments).env("APT_CONFIG", folder.join("apt.conf")).current_dir(folder);
        child::check(&mut command, FETCH_LIMIT)
    }

    /// Unpacks every package in `folder` to `target`.
    fn unpack(&self, folder: &Path, target: &Path) -> Result<()> {
        let mut count = 0;
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "deb") {
                let status = Command::new("dpkg-deb").arg("-x").arg(&path).arg(target).status();
                ensure!(status.is_ok_and(|s| s.success()), "cannot unpack {}", path.display());
                count += 1;
            }
        }
        ensure!(count > 0, "no package came");
        println!("unpacked {count} packages");
        Ok(())
    }

    /// Takes the kernel and the modules out of its package.
    fn take_kernel(&self, package: &Path) -> Result<()> {
        let files = files_below(package)?;
        let image = files.iter().find(|path| name_of(path).starts_with("vmlinuz"));
        fs::copy(image.context("the package has no kernel")?, self.kernel())?;
        fs::create_dir_all(self.0.join("modules"))?;
        for (name, to) in self.modules() {
            // Behind the number.
            let plain = name.split_once('-').map_or(name.as_str(), |(_, plain)| plain);
            let packed = format!("{plain}.xz");
            let found = files.iter().find(|path| name_of(path) == plain || name_of(path) == packed);
            let found = found.with_context(|| format!("the kernel has no module {plain}"))?;
            if name_of(found) == plain {
                fs::copy(found, &to)?;
                continue;
            }
            let out = fs::File::create(&to)?;
            let mut xz = Command::new("xz");
            let status = xz.arg("-dc").arg(found).stdout(Stdio::from(out)).status();
            let status = status.context("cannot run xz; install xz-utils")?;
            ensure!(status.success(), "cannot unpack {}", found.display());
        }
        Ok(())
    }

    /// Whether QEMU runs, and can have a device in another process.
    fn check(&self) -> Result<()> {
        let mut command = self.qemu();
        let devices = child::check(command.args(["-device", "vfio-user-pci,help"]), QUICK_LIMIT);
        match devices {
            Ok(_) => Ok(()),
            Err(error) => bail!("this QEMU has no vfio-user-pci, which 10.1 has: {error:#}"),
        }
    }
}

/// The Debian mirror of this machine.
fn mirror() -> Result<String> {
    let mut texts = Vec::new();
    for entry in fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten() {
        texts.push(fs::read_to_string(entry.path()).unwrap_or_default());
    }
    texts.push(fs::read_to_string("/etc/apt/sources.list").unwrap_or_default());
    let found = texts.iter().find_map(|text| mirror_in(text));
    found.context("no source of apt-get's names a Debian archive")
}

/// The first archive of Debian's, not of its security updates, in a list of sources of either form.
fn mirror_in(text: &str) -> Option<String> {
    text.lines().filter(|line| !line.trim_start().starts_with('#')).find_map(|line| {
        let is_source = line.starts_with("URIs:") || line.starts_with("deb ");
        let mut words = line.split_whitespace().filter(|_| is_source);
        let word = words.find(|word| word.contains("://"))?;
        let path = word.trim_end_matches('/');
        path.ends_with("/debian").then(|| path.to_owned())
    })
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => found.extend(files_below(&entry.path())?),
            false => found.push(entry.path()),
        }
    }
    Ok(found)
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_found_in_both_forms_and_is_not_that_of_security_updates() {
        let new = "Types: deb\n# http://old.example/debian\nURIs: http://a.example/debian-security\n\
            Suites: x\n\nTypes: deb\nURIs: http://a.example/x/debian/\nSuites: y\n";
        assert_eq!(mirror_in(new).as_deref(), Some("http://a.example/x/debian"));
        let old = "deb [arch=amd64 signed-by=/k] https://b.example/debian bookworm main\n";
        assert_eq!(mirror_in(old).as_deref(), Some("https://b.example/debian"));
        assert_eq!(mirror_in("deb http://c.example/ubuntu noble main\n"), None);
    }
}
