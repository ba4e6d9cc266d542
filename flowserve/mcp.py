"""Tools of MCP servers in workflows: `from flowserve.mcp import tools`. Needs `mcp` 2 (the extra `mcp`)."""

try:
    from flowserve.integrations.mcp_tools import MCPTool, tools
except ImportError as cause:
    raise ImportError(
        f"flowserve.mcp needs mcp 2 (pip install 'flowserve[mcp]'); its import failed: {cause}"
    ) from cause

__all__ = ["MCPTool", "tools"]
