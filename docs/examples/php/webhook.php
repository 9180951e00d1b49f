<?php
// Receive webhooks: a script for your web server. LAMPLIGHTER_WEBHOOK_SECRET is what GET /v1/webhooks/secret shows.

declare(strict_types=1);

require __DIR__ . '/lamplighter.php';

$headers = [];
foreach ($_SERVER as $name => $value) {
    if (str_starts_with($name, 'HTTP_')) {
        $headers[strtolower(strtr(substr($name, 5), '_', '-'))] = $value;
    }
}
$job = lamplighter_webhook_job(file_get_contents('php://input'), $headers, getenv('LAMPLIGHTER_WEBHOOK_SECRET'));
if ($job === null) {
    http_response_code(401);
    exit('the signature is not valid');
}
// States may come twice or out of order: keep the one with the highest revision.
file_put_contents(getenv('LAMPLIGHTER_STATES'), "{$job['id']} {$job['revision']} {$job['status']}\n", FILE_APPEND | LOCK_EX);
http_response_code(204);
