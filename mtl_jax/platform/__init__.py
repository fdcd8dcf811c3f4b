"""The ground floor: what the code runs on."""
