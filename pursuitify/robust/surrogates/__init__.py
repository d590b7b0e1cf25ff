"""Networks that an attacker differentiates instead of the attacked one."""
