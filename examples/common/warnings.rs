//! What the library warns of, on standard error.

use core::fmt::{Debug, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};

/// From now on warnings are shown.
pub fn show() {
    // Whoever has set another subscriber shows them in its own way.
    let _ = tracing::subscriber::set_global_default(Registry::default().with(Warnings));
}

/// Shows events of the level `WARN`.
struct Warnings;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= Level::WARN && metadata.target().starts_with("vmi")
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let fields = if text.fields.is_empty() { String::new() } else { format!(" ({})", text.fields) };
        super::say("\x1b[33mwarning:\x1b[0m", format_args!("{}{fields}", text.message));
    }
}

/// The message of an event, and its other fields behind one another.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            let comma = if self.fields.is_empty() { "" } else { ", " };
            let _ = write!(self.fields, "{comma}{}: {value:?}", field.name());
        }
    }
}
