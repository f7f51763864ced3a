"""What screens are built from; a widget knows what it draws and posts messages, it fetches nothing."""
