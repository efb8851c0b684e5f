//! Jinja rendering of chat templates.
