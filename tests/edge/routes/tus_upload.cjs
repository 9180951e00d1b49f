// Uploads argv[3] to the tus server argv[2] with tus-js-client, resuming by itself, and prints what it came to.
// Behaviour after the others: argv[4] the key, argv[5] bytes a request, argv[6] "stop" to stop after one piece and
// print the upload's URL, or the URL of an upload to go on with.
const fs = require("fs");
const tus = require("tus-js-client");

const [, , endpoint, path, key, chunkSize, how] = process.argv;
const headers = {};
const upload = new tus.Upload(fs.createReadStream(path), {
  endpoint,
  uploadUrl: how && how !== "stop" ? how : undefined,
  chunkSize: Number(chunkSize),
  retryDelays: [0, 100, 200, 400, 800, 1600],
  headers: { Authorization: `Bearer ${key}` },
  metadata: { filename: "face.mp4", filetype: "video/mp4" },
  uploadSize: fs.statSync(path).size,
  onAfterResponse: (_, response) => {
    headers.asset = response.getHeader("Lamplighter-Asset") || headers.asset;
  },
  onError: (error) => {
    console.log(JSON.stringify({ error: String(error) }));
    process.exit(1);
  },
  onChunkComplete: async () => {
    if (how === "stop") {
      await upload.abort();
      console.log(JSON.stringify({ url: upload.url }));
      process.exit(0);
    }
  },
  onSuccess: () => console.log(JSON.stringify({ asset: headers.asset, url: upload.url })),
});
upload.start();
