"""SimpleITK's registration methods on images in memory."""
