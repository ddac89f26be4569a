"""The worker around any source: taken, applied, set aside, let go of; and watched."""
