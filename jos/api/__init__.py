"""The HTTP API. Routes hold no rules: they parse, call a service room, and answer in the shapes of jos.wire."""
