"""Search for a start between images that lie anyhow, and evidence for or against what is found."""
