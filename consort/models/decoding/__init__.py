"""Our own decode loop: networks with slots (`lean`, `module`), a batch that rows join and leave, sampling."""
