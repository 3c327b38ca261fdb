"""What a developer types first: workspaces, `islet run`, the demo, the doctor."""
