//! Keys by their full path, over all hives: `\REGISTRY\MACHINE\SYSTEM\CurrentControlSet\Services`.

use vmi_arch_x86::X86Driver;

use super::bytes::same_name;
use super::cells::RegistryError;
use super::key::{Hive, Key};
use super::memory_hive::MemoryHive;
use super::value::Data;
use crate::Windows;

/// Symbolic links that are followed on the way to a key.
const MAX_LINKS: usize = 16;

/// A key that was found by its full path.
#[derive(Debug)]
pub struct FoundKey<'l, 'v, D: X86Driver> {
    hive: Hive<MemoryHive<'l, 'v, D>>,
    cell: u32,
}

impl<'l, 'v, D: X86Driver> FoundKey<'l, 'v, D> {
    /// The hive that it is in.
    pub fn hive(&self) -> &Hive<MemoryHive<'l, 'v, D>> {
        &self.hive
    }

    /// The key.
    ///
    /// # Errors
    /// As [`Hive::key_at`].
    pub fn key(&self) -> Result<Key<'_, MemoryHive<'l, 'v, D>>, RegistryError> {
        self.hive.key_at(self.cell)
    }
}

/// The names in a path.
fn parts(path: &str) -> Vec<&str> {
    path.split('\\').filter(|part| !part.is_empty()).collect()
}

impl<'v, D: X86Driver> Windows<'v, D> {
    /// The key at a full path, as drivers write it: `\REGISTRY\MACHINE\SYSTEM\CurrentControlSet`. Symbolic links, as `CurrentControlSet` is one, are
    /// followed, also where they are the last part.
    ///
    /// The hive is found by the path of its root key, which kernels note since Windows Vista; before, take the hive from [`Windows::hives`] by its file.
    ///
    /// # Errors
    /// [`RegistryError::NoKey`] if there is no such key; [`RegistryError::Limit`] if links lead on without an end; else the first error on the way.
    pub fn registry_key(&self, path: &str) -> Result<FoundKey<'_, 'v, D>, RegistryError> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            match self.registry_step(&path)? {
                Ok(found) => return Ok(found),
                Err(link) => path = link,
            }
        }
        Err(RegistryError::Limit { what: format!("the way of links to `{path}`"), limit: MAX_LINKS })
    }

    /// The key at a path; or, where a link is on the way, the path that takes its place.
    fn registry_step(&self, path: &str) -> Result<Result<FoundKey<'_, 'v, D>, String>, RegistryError> {
        let wanted = parts(path);
        // The hive that is mounted deepest on the way.
        let mut best: Option<(usize, MemoryHive<'_, 'v, D>)> = None;
        let mut problem = None;
        for hive in self.hives() {
            let hive = match hive {
                Ok(hive) => hive,
                Err(error) => {
                    problem = problem.or(Some(error));
                    continue;
                }
            };
            let root = match hive.root_path() {
                Ok(Some(root)) => root,
                Ok(None) => continue,
                Err(error) => {
                    problem = problem.or(Some(error));
                    continue;
                }
            };
            let root = parts(&root);
            let leads = root.len() <= wanted.len() && root.iter().zip(&wanted).all(|(one, other)| same_name(one, other));
            if leads && best.as_ref().is_none_or(|(depth, _)| root.len() > *depth) {
                best = Some((root.len(), hive));
            }
        }
        let Some((depth, hive)) = best else {
            return Err(problem.map_or_else(|| RegistryError::NoKey { path: path.to_owned() }, RegistryError::Guest));
        };
        let hive = Hive::new(hive);
        let cell = {
            let mut key = hive.root()?;
            for (index, part) in wanted.iter().enumerate().skip(depth) {
                let so_far = || wanted.iter().take(index.saturating_add(1)).map(|part| format!("\\{part}")).collect::<String>();
                key = key.subkey(part)?.ok_or_else(|| RegistryError::NoKey { path: so_far() })?;
                if key.is_link() {
                    let target = key.value("SymbolicLinkValue")?.map(|value| value.bytes()).transpose()?;
                    let target = target.map(|bytes| Data::of(super::ValueType(6), bytes));
                    let Some(Data::Text(mut target)) = target else {
                        return Err(RegistryError::corrupt(key.cell(), "is a symbolic link without a target"));
                    };
                    for rest in wanted.iter().skip(index.saturating_add(1)) {
                        target.push('\\');
                        target.push_str(rest);
                    }
                    return Ok(Err(target));
                }
            }
            key.cell()
        };
        Ok(Ok(FoundKey { hive, cell }))
    }
}
