//! Errors in one line.

use std::error::Error;

/// An error and what it comes from, each said once: for a program that prints one line, or hands a message to another language.
///
/// ```
/// let error = vmi::open("no/such/image.raw").unwrap_err();
/// println!("{}", vmi::with_causes(&error));
/// # assert!(vmi::with_causes(&error).contains("No such file"));
/// ```
pub fn with_causes(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = error.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{said}")]
    struct Said {
        said: &'static str,
        source: Option<Box<Said>>,
    }

    #[test]
    fn what_was_said_is_not_repeated() {
        let say = |said, source: Option<Said>| Said { said, source: source.map(Box::new) };
        let chain = say("cannot open a", Some(say("a: denied", Some(say("denied", None)))));
        assert_eq!(with_causes(&chain), "cannot open a: a: denied");
    }
}
