"""From prompts to text: templates, sampling, stopping, speculation."""
