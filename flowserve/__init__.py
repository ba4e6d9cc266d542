"""FlowServe."""
