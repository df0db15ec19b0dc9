"""An env, an agent, a network and an intervention for rlearly."""
