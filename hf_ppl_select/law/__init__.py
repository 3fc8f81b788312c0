"""The scaling law: its forms, its fit, how sure it is, and where it is best."""
