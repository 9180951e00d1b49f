<?php
// Submit a file to the endpoint `echo`, wait, and save the result: php submit.php FILE RESULT [WEBHOOK_URL]
// LAMPLIGHTER_URL and LAMPLIGHTER_KEY name the edge and the key.

declare(strict_types=1);

require __DIR__ . '/lamplighter.php';

[, $file, $result] = $argv;
$client = new Lamplighter(getenv('LAMPLIGHTER_URL'), getenv('LAMPLIGHTER_KEY'));
$fields = isset($argv[3]) ? ['webhook' => ['url' => $argv[3]]] : [];
try {
    $job = $client->submit('echo', ['text' => 'from PHP'], ['file' => $file], $fields);
    $job = $client->wait($job['id']);
} catch (LamplighterError $error) {
    fwrite(STDERR, $error->getMessage() . "\n");
    exit(4);
}
if ($job['status'] !== 'succeeded') {
    fwrite(STDERR, "{$job['status']}: " . ($job['error']['message'] ?? $job['message'] ?? '') . "\n");
    exit(1);
}
$client->download($job, $job['output']['files'][0]['name'], $result);
echo $job['id'], ' ', $job['output']['data']['text'], "\n";
