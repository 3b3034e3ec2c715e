//! Lists the registry of a Windows guest, from its memory.

mod common;

use std::process::ExitCode;

use clap::Parser;
use common::table::{Column, Row, Table};
use common::text::{Hex, cell, hex};
use common::{Common, EXIT_CODES};
use serde::Serialize;
use vmi::AnyDriver;
use vmi::windows::moment;
use vmi::windows::registry::{Cells, Data, Key, MemoryHive, RegistryError, Value};

/// List the registry of a Windows guest: its hives, or a key with its subkeys and values
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  registry-list guest.dmp                                               the hives
  registry-list --key '\\REGISTRY\\MACHINE\\SYSTEM' guest.dmp             a key: its subkeys and values
  registry-list --key '\\REGISTRY\\MACHINE\\SOFTWARE' --recursive guest.dmp   with all keys below it
  registry-list --json --key '\\REGISTRY\\MACHINE\\SYSTEM\\Select' guest.dmp | jq '.[] | select(.kind == \"value\")'

{EXIT_CODES}"))]
struct Args {
    /// The full path of a key, as drivers write it; links such as CurrentControlSet are followed
    #[arg(long, value_name = "PATH")]
    key: Option<String>,
    /// All keys below it too
    #[arg(long, short, requires = "key")]
    recursive: bool,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::run(|| {
        let vmi = args.common.open()?;
        let windows = args.common.attach_windows(&vmi)?;
        let Some(path) = &args.key else {
            let mut table = args.common.table(HiveRow::COLUMNS);
            for hive in windows.hives() {
                table.row(hive.and_then(|hive| HiveRow::of(&hive)))?;
            }
            return table.finish();
        };
        let found = windows.registry_key(path)?;
        let key = found.key()?;
        let mut table = args.common.table(EntryRow::COLUMNS);
        if !args.recursive {
            contents(path, &key, true, &mut table)?;
            return table.finish();
        }
        for entry in key.tree() {
            match entry {
                Ok(entry) => {
                    let here = if entry.path.is_empty() { path.clone() } else { format!("{path}\\{}", entry.path) };
                    table.row(Ok(EntryRow::key(&here, &entry.key)))?;
                    contents(&here, &entry.key, false, &mut table)?;
                }
                Err(error) => table.row_or::<EntryRow>(Err(error))?,
            }
        }
        table.finish()
    })
}

/// The values of a key, and before them its subkeys if they are wanted.
fn contents<C: Cells>(path: &str, key: &Key<'_, C>, subkeys: bool, table: &mut Table) -> anyhow::Result<()> {
    if subkeys {
        for subkey in key.subkeys() {
            table.row_or(subkey.map(|subkey| EntryRow::key(&format!("{path}\\{}", subkey.name()), &subkey)))?;
        }
    }
    for value in key.values() {
        table.row_or(value.and_then(|value| EntryRow::value(path, &value)))?;
    }
    Ok(())
}

#[derive(Serialize)]
struct HiveRow {
    name: Option<String>,
    root_path: Option<String>,
    file: Option<String>,
    object: Hex,
}

impl HiveRow {
    const COLUMNS: &[Column] = &[("object", 18), ("mounted at", 40), ("file", 0)];

    fn of(hive: &MemoryHive<'_, '_, AnyDriver>) -> vmi::Result<Self> {
        Ok(Self { name: hive.name()?, root_path: hive.root_path()?, file: hive.file_path()?, object: Hex(hive.address().get()) })
    }
}

impl Row for HiveRow {
    fn cells(&self) -> Vec<String> {
        let place = self.root_path.as_ref().or(self.name.as_ref());
        vec![self.object.to_string(), cell(place), cell(self.file.as_ref())]
    }
}

/// A key or a value.
#[derive(Serialize)]
struct EntryRow {
    kind: &'static str,
    path: String,
    /// The name of a value; empty for the default one.
    name: Option<String>,
    #[serde(rename = "type")]
    data_type: Option<String>,
    data: Option<serde_json::Value>,
    last_write: Option<String>,
}

impl EntryRow {
    const COLUMNS: &[Column] = &[("path", 50), ("value", 24), ("type", 13), ("data", 0)];

    fn key<C: Cells>(path: &str, key: &Key<'_, C>) -> Self {
        let last_write = moment(key.last_write()).and_then(common::text::rfc3339);
        Self { kind: "key", path: path.to_owned(), name: None, data_type: None, data: None, last_write }
    }

    fn value<C: Cells>(path: &str, value: &Value<'_, C>) -> Result<Self, RegistryError> {
        let data = match value.data()? {
            Data::Text(text) => text.into(),
            Data::Texts(texts) => texts.into(),
            Data::Number(number) => number.into(),
            Data::Bytes(bytes) => hex(&bytes, "").into(),
            other => format!("{other:?}").into(),
        };
        Ok(Self {
            kind: "value",
            path: path.to_owned(),
            name: Some(value.name()),
            data_type: Some(value.data_type().to_string()),
            data: Some(data),
            last_write: None,
        })
    }
}

impl Row for EntryRow {
    fn cells(&self) -> Vec<String> {
        let name = self.name.as_ref().map(|name| if name.is_empty() { "(default)" } else { name });
        let data = self.data.as_ref().map(|data| data.as_str().map_or_else(|| data.to_string(), str::to_owned));
        vec![self.path.clone(), cell(name), cell(self.data_type.as_ref()), cell(data.or_else(|| self.last_write.clone()))]
    }
}
