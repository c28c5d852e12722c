"""One registration: its steps, what they cost, its folder, and how a killed run goes on."""
