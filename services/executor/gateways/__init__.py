"""The executor's adapters: the Claude Agent SDK, the sandbox, the model API."""
