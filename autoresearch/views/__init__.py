"""What people see of a run: console, status, watch, report. All of them draw from one State (state.py)."""
