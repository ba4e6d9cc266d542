"""FlowServe for people who keep their framework: one folder per framework, each an extra of its own.

Nothing here is imported by `import flowserve`; each folder needs its framework and says so.
"""
