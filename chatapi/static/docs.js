const target = document.getElementById("swagger-ui");
window.ui = SwaggerUIBundle({
  url: target.dataset.openapi,
  domNode: target,
  deepLinking: true,
  persistAuthorization: true,
  tryItOutEnabled: true,
  // Else the address of this document would be sent to a service elsewhere.
  validatorUrl: null,
});
