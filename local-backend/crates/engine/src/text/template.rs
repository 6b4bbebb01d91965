//! Chat templates: the Jinja text that comes with a model.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value};

const NAME: &str = "chat";

/// A model's template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Whether the template looks at tools at all.
    pub knows_tools: bool,
}

impl ChatTemplate {
    /// # Errors
    /// The template is not one.
    pub fn new(source: &str) -> Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|error| error.to_string())?);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<Value, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| format!("its chat template cannot be read: {error}"))?;
        Ok(Self {
            environment,
            knows_tools: source.contains("tools"),
        })
    }

    /// The template's text.
    #[must_use]
    pub fn source(&self) -> String {
        let template = self.environment.get_template(NAME);
        template
            .map(|template| template.source().to_owned())
            .unwrap_or_default()
    }

    /// The prompt for `messages`, an array as in chat completions with plain text contents.
    ///
    /// # Errors
    /// What the template objects to.
    pub fn render(
        &self,
        messages: &serde_json::Value,
        tools: Option<&serde_json::Value>,
    ) -> Result<String, String> {
        self.render_with(messages, tools, &serde_json::Value::Null)
    }

    /// The same with further variables, an object, that the template may look at: `enable_thinking` and the like.
    ///
    /// # Errors
    /// What the template objects to.
    pub fn render_with(
        &self,
        messages: &serde_json::Value,
        tools: Option<&serde_json::Value>,
        variables: &serde_json::Value,
    ) -> Result<String, String> {
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| error.to_string())?;
        let mut context =
            serde_json::json!({ "messages": messages, "tools": tools, "add_generation_prompt": true });
        for (name, value) in variables.as_object().into_iter().flatten() {
            context[name] = value.clone();
        }
        template
            .render(minijinja::value::Serde(context))
            .map_err(|error| error.to_string())
    }
}
