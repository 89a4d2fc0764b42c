"""How a recipe becomes artifacts: steps, their graph, the work folder, the plan and the result."""
