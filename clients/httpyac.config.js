// Has httpyac read app.rest as the REST Client of VS Code does, and check its answers.
module.exports = {
  configureHooks(api) {
    api.hooks.onResponse.addHook("app.rest", (response, context) => {
      const region = context.httpRegion;
      // httpyac knows the answer to a named request by its body alone; REST Client by `name.response.body.$`.
      if (response.parsedBody && typeof response.parsedBody === "object") {
        Object.defineProperty(response.parsedBody, "response", { value: { body: { $: response.parsedBody } } });
      }
      // `# @expect 201`, to REST Client a comment. A request without one fails, as does every unexpected status.
      const expected = Number(region.metaData.expect);
      const message = `${response.statusCode} is the expected ${region.metaData.expect}`;
      region.testResults = region.testResults || [];
      region.testResults.push({ message, status: response.statusCode === expected ? "SUCCESS" : "FAILED" });
    });
  },
};
