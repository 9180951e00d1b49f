document.body.textContent = "Lamplighter";
