Redoc.init("/api/v1/openapi.json", { disableSearch: true, hideHostname: true }, document.getElementById("reference"));
