"""What people wrote, looked over: checks, bulk corrections, agreement, pace."""
